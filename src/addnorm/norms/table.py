"""The norms, by the name that ``norm=`` takes."""

from __future__ import annotations

from .base import Norm
from .layer import Layer
from .prms import PartialRMS
from .rms import RMS
from .scale import Scale

NORMS: dict[str, Norm] = {norm.name: norm for norm in (Layer(), RMS(), PartialRMS(), Scale())}
