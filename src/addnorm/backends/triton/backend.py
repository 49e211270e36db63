"""The backend that runs the Triton kernels, which are loaded by the first call that could take them."""

from __future__ import annotations

import importlib
import os
from functools import cache
from types import ModuleType

import torch
from torch import Tensor

from ...call import Call, Gradient
from ..base import YES, Backend, Plan, Support, no_kernel, once_a_graph
from .launch import MOST_COLUMNS

NORMS = ("layer", "rms")  # that there are kernels for: norms.py
OLDEST = (8, 0)  # compute capability: bfloat16, asynchronous copies
INTERPRETED = "Triton interprets its kernels here (TRITON_INTERPRET=1): by name alone"


@cache
def load() -> tuple[ModuleType | None, str]:
    """The kernels, or None and why there are none."""
    try:
        return importlib.import_module(f"{__package__}.run"), ""
    except ModuleNotFoundError as error:
        return None, f"{error.name} is not installed: pip install triton"
    except Exception as error:  # a Triton that does not fit its torch or its Python breaks in many ways
        return None, f"triton does not load: {type(error).__name__}: {error}"


@once_a_graph
def obstacle(kind: str, index: int | None) -> str:
    """Why the kernels do not run on a device, or nothing, or `INTERPRETED`, with which they do."""
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    if kind != "cuda" and not (interpreted and kind == "cpu"):
        return f"x is on {kind}"
    kernels, reason = load()
    if kernels is None:
        return reason
    if interpreted != kernels.INTERPRETED:
        return "TRITON_INTERPRET was changed after the kernels were loaded"
    if interpreted:
        return INTERPRETED
    if torch.version.cuda is None:
        return "its kernels are made for CUDA, this torch is not"
    capability = torch.cuda.get_device_capability(index)
    if capability < OLDEST:
        return f"{kind}:{index or 0} has compute capability {capability}, the kernels want {OLDEST}"
    return kernels.trouble()


class Triton(Backend):
    """CUDA tensors of any dtype and stride; CPU tensors, when named, where Triton's interpreter is on."""

    name = "triton"
    in_python = True

    def supports(self, call: Call | Gradient) -> Support:
        device = call.main.device
        if call.norm not in NORMS:
            return no_kernel(call.norm, NORMS)
        reason = obstacle(device.type, device.index)
        if reason in ("", INTERPRETED) and call.main.shape[-1] > MOST_COLUMNS:
            return Support.no(f"x has {call.main.shape[-1]} columns, the kernels take up to {MOST_COLUMNS}")
        return YES if not reason else Support(reason == INTERPRETED, reason)

    def forward(
        self,
        call: Call,
        *,
        keep_stream: bool,
        keep_stats: bool,
        out: Tensor | None = None,
        stream_out: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        return kernels().forward(call, keep_stream=keep_stream, keep_stats=keep_stats, out=out, stream_out=stream_out)

    def backward(self, call: Gradient) -> dict[str, Tensor | None]:
        return kernels().backward(call)

    def forward_plan(self, call: Call, *, keep_stream: bool, keep_stats: bool) -> Plan | None:
        return kernels().forward_plan(call, keep_stream=keep_stream, keep_stats=keep_stats)

    def backward_plan(self, call: Gradient) -> Plan | None:
        return kernels().backward_plan(call)


def kernels() -> ModuleType:
    module, reason = load()
    if module is None:
        raise RuntimeError(reason)
    return module
