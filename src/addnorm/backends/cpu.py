"""The C++ kernels: one pass over memory, forward and backward."""

from __future__ import annotations

from torch import Tensor

from ..call import OPERANDS, Call, Gradient
from . import native
from .base import YES, Backend, Support


class Cpu(Backend):
    """CPU tensors of any dtype and stride; see csrc/cpu for the kernels."""

    name = "cpu"

    def supports(self, call: Call) -> Support:
        if call.x.device.type != "cpu":
            return Support.no(f"x is on {call.x.device}")
        if native.EXTENSION is None:
            return Support.no(native.REASON)
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
            call.x,
            call.residual,
            call.weight,
            call.bias,
            call.branch_bias,
            call.branch_scale,
            call.row_scale,
            call.seed,
            call.norm,
            call.eps,
            call.residual_scale,
            call.dropout_p,
            call.weight_offset,
            call.out_dtype,
            call.stream_dtype,
            keep_stream,
            keep_stats,
            out,
            stream_out,
        )

    def backward(self, call: Gradient) -> dict[str, Tensor | None]:
        assert native.EXTENSION is not None
        grads = native.EXTENSION.backward(
            call.dy,
            call.ds,
            call.z,
            call.stats,
            call.x,
            call.weight,
            call.branch_bias,
            call.branch_scale,
            call.row_scale,
            call.seed,
            call.norm,
            call.residual_scale,
            call.dropout_p,
            call.weight_offset,
            call.x_dtype,
            call.residual_dtype,
            call.bias_dtype,
            tuple(call.needs),
        )
        return dict(zip(OPERANDS, grads, strict=True))
