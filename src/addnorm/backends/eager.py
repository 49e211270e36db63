"""The reference as a backend: any device, any dtype, op by op."""

from __future__ import annotations

from torch import Tensor

from .. import reference
from ..call import Call, Gradient
from .base import YES, Backend, Support


class Eager(Backend):
    """Takes every call, at the price of many passes over memory."""

    name = "eager"

    def supports(self, call: Call | Gradient) -> Support:
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
        y, z, stats = reference.forward(call)
        y, z = y.contiguous(), z.contiguous()
        if z is call.x and keep_stream:
            z = z.clone()  # what is returned never aliases an argument
        z = z if stream_out is None else stream_out.copy_(z)  # before `out`, which may be x, which may be z
        y = y if out is None else out.copy_(y)
        return y, z if keep_stream else None, stats if keep_stats else None

    def backward(self, call: Gradient) -> dict[str, Tensor | None]:
        return {name: None if g is None else g.contiguous() for name, g in reference.backward(call).items()}
