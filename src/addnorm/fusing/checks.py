"""Which models `fuse` refuses, before anything is changed."""

from __future__ import annotations

from typing import Any

from torch._dynamo.eval_frame import OptimizedModule

from ..checks import check_model
from .place import PLACE, InPlace, standing


def check_fusable(model: Any) -> None:
    """
    Raises:
        TypeError: it is no module.
        ValueError: it, or a part of it, has been compiled or has a monitor, or has parameters without values.
    """
    check_model(model, then="fuse")
    for path, part in model.named_modules():
        what = f"the model's part {path}" if path else "model"
        place = part.__dict__.get(PLACE)
        if isinstance(part, OptimizedModule) or (place is not None and not isinstance(place, InPlace)):
            raise ValueError(
                f"{what} has been compiled: give the plain model, or compile it with mode='inductor' or an "
                "addnorm.FusePass()"
            )
        if objection := next((call.objection for call in standing(part) if call.objection), ""):
            raise ValueError(f"{what} {objection}")
