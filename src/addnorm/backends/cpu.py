"""The C++ kernels: one pass over memory, forward and backward."""

from __future__ import annotations

from torch import Tensor

from ..call import CALL_FIELDS, GRADIENT_FIELDS, OPERANDS, Call, Gradient
from . import native
from .base import YES, Backend, Support, no_kernel

NORMS = ("layer", "rms")  # that there are kernels for: csrc/cpu/norms


class Cpu(Backend):
    """CPU tensors of any dtype and stride; see csrc/cpu for the kernels."""

    name = "cpu"

    def supports(self, call: Call | Gradient) -> Support:
        if call.main.device.type != "cpu":
            return Support.no(f"x is on {call.main.device}")
        if native.EXTENSION is None:
            return Support.no(native.REASON)
        if call.norm not in NORMS:
            return no_kernel(call.norm, NORMS)
        return YES

    def forward(
        self,
        call: Call,
        *,
        keep_stream: bool,
        keep_stats: bool,
        out: Tensor | None = None,
        stream_out: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        assert native.EXTENSION is not None
        return native.EXTENSION.forward(
            *(getattr(call, name) for name in CALL_FIELDS),
            keep_stream,
            keep_stats,
            out,
            stream_out,
        )

    def backward(self, call: Gradient) -> dict[str, Tensor | None]:
        assert native.EXTENSION is not None
        grads = native.EXTENSION.backward(*(getattr(call, name) for name in GRADIENT_FIELDS))
        return dict(zip(OPERANDS, grads, strict=True))
