"""The norms, by the name that ``norm=`` takes."""

from __future__ import annotations

import torch
from torch import Tensor

from ..checks import lookup
from .base import Norm
from .derf import Derf
from .dyt import DyT
from .layer import Layer
from .prms import PartialRMS
from .rms import RMS
from .scale import Scale

NORMS: dict[str, Norm] = {norm.name: norm for norm in (Layer(), RMS(), PartialRMS(), Scale(), DyT(), Derf())}


def policy(norm: str | Norm) -> Norm:
    """The policy that ``norm=`` names, or is.

    Raises:
        ValueError: where the name is unknown, listing all.
    """
    return norm if isinstance(norm, Norm) else lookup("norm", norm, NORMS)


def initial_policy(norm: str | Norm) -> str | Norm:
    """What a module keeps of its ``norm=``: of a policy's learned numbers their values, where its parameters start.

    Raises:
        ValueError: where the name is unknown, listing all.
        TypeError: where `Norm.with_own` does not reach a number.
    """
    kind, probe = policy(norm), torch.zeros(())
    if isinstance(norm, str) or not kind.own:
        return norm
    for name, found in kind.with_own(**dict.fromkeys(kind.own, probe)).own.items():
        if found is not probe:
            raise TypeError(f"{type(kind).__name__} must keep its learned number in self.{name}, or override with_own")
    values = {name: v.detach().item() if isinstance(v, Tensor) else v for name, v in kind.own.items()}
    return kind.with_own(**values)
