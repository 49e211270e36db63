"""Every claim, in its order."""

from __future__ import annotations

from . import (
    adaptation,
    affine,
    composition,
    covariate_shift,
    gradient,
    history,
    identity_path,
    padding,
    per_token,
    placement,
    speed,
    target,
    value_range,
    vanishing,
)
from .base import Claim

CLAIMS: dict[str, Claim] = {
    "composition": composition.CLAIM,
    "placement": placement.CLAIM,
    "history": history.CLAIM,
    "target": target.CLAIM,
    "vanishing": vanishing.CLAIM,
    "gradient": gradient.CLAIM,
    "identity-path": identity_path.CLAIM,
    "per-token": per_token.CLAIM,
    "range": value_range.CLAIM,
    "covariate-shift": covariate_shift.CLAIM,
    "padding": padding.CLAIM,
    "affine": affine.CLAIM,
    "adaptation": adaptation.CLAIM,
    "speed": speed.CLAIM,
}
