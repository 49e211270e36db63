"""Which models `fuse` refuses, before anything is changed."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch._dynamo.eval_frame import OptimizedModule

from .place import PLACE, InPlace, standing


def check_model(model: Any) -> None:
    """
    Raises:
        TypeError: it is no module.
        ValueError: it, or a part of it, has been compiled or has a monitor, or has parameters without values.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    if isinstance(model, torch.jit.ScriptModule):
        raise ValueError("model is TorchScript, which has no Python code left: give the module that it was made from")
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
    for path, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if tensor.is_meta:
            raise ValueError(f"model has no values yet: {path} is on the meta device; load the weights, then fuse")
