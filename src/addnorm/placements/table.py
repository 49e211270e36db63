"""The placements, by the name that ``placement=`` takes, and the one place that makes one."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ..checks import lookup
from ..modules import check_norm_options
from ..norms import initial_policy
from .admin import Admin
from .b2t import B2T
from .base import Placement, Settings, Site
from .deepnorm import DeepNorm
from .hybrid_norm import HybridNorm
from .layernorm_scaling import LayerNormScaling
from .layerscale import LayerScale
from .mix_ln import MixLN
from .normformer import NormFormer
from .parallel import Parallel
from .peri import Peri
from .post import Post
from .pre import Pre
from .residual_dual import ResidualDual
from .rezero import ReZero
from .sandwich import Sandwich
from .sub_ln import SubLN

MEMBERS: tuple[type[Placement], ...] = (
    Post, Pre, DeepNorm, Sandwich, Peri, SubLN, NormFormer, ResidualDual, LayerNormScaling, MixLN, B2T, Parallel,
    ReZero, LayerScale, HybridNorm, Admin,
)  # fmt: skip
PLACEMENTS: dict[str, type[Placement]] = {member.name: member for member in MEMBERS}


def make(
    name: str, sites: Sequence[Site], settings: Settings, final_norm: bool | None = None, **options: Any
) -> Placement:
    """The named placement for these sites; `options` are its own, such as ``post_fraction`` of "mix_ln".

    Raises:
        ValueError: where the name is unknown, listing all, or a setting does not fit.
        TypeError: where an option is not one of the placement's.
    """
    member = lookup("placement", name, PLACEMENTS)
    settings = s = replace(settings, norm=initial_policy(settings.norm))
    check_norm_options(  # also where the placement has no norm
        eps=s.eps, bias=s.bias, weight_offset=s.weight_offset, backend=s.backend, dtype=s.dtype
    )
    known = [p.name for p in inspect.signature(member).parameters.values() if p.kind is p.KEYWORD_ONLY]
    for option in options:
        if option not in known:
            raise TypeError(f"placement={name!r} has no option {option!r}; it has: {', '.join(known) or 'none'}")
    return member(sites, settings, final_norm, **options)
