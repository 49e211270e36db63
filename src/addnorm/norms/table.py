"""The norms, by the name that ``norm=`` takes."""

from __future__ import annotations

from ..call import lookup
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
