"""The reference as a backend: any device, any dtype, op by op."""

from __future__ import annotations

import torch
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
        grads = reference.backward(call)
        taken = {id(call.ds)}  # an operator's results are neither arguments nor one another
        for name, g in grads.items():
            if g is not None:
                grads[name] = g.clone(memory_format=torch.contiguous_format) if id(g) in taken else g.contiguous()
                taken.add(id(g))
        return grads
