"""Where Inductor's own fusion of a site with its neighbours was measured to be faster than the fused operation.

Time of a stack of 4 x (Linear, dropout, sum, norm) as Inductor compiles it over that with the fused operation, best of
interleaved runs, dynamic lengths: AMD EPYC (Zen 3, AVX2), one thread of a shared machine, torch 2.13.0.

=====================  ========  =====================  =====================  =====================
norm, width, dtype     rows      inference              training, no dropout   training, dropout 0.1
=====================  ========  =====================  =====================  =====================
layer, 384, float32    16        0.43                   0.84                   1.01
.                      512       1.01                   0.75                   1.73
.                      2048      1.04                   0.91                   1.97
layer, 1024, float32   16        0.86                   0.96                   1.03
.                      512       1.08                   0.87                   1.10
.                      2048      0.95                   1.05
rms, 1024, float32     16        0.85                   0.96                   1.02
.                      512       1.00                   1.00                   1.27
.                      2048      1.01                   1.05                   1.30
=====================  ========  =====================  =====================  =====================

Without dropout the operation gains nothing on the CPU and costs 0.2 ms a call in small ones; with it, it always gains.
Other devices were not measured: there the operation is used.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .nodes import example
from .sites import Site

NARROW = 256  # columns, below which torch's float32 layer_norm trains faster
ALONE = "torch's layer_norm was measured to be as fast alone, in float32 without gradients or in narrow rows"
FASTER = "Inductor's own fusion was measured to be faster where no dropout is drawn"


def inductor_is_faster(site: Site) -> str:
    """Why a site is left to Inductor; "" where the fused operation is used."""
    x = example(site.x)
    on_cpu = x is not None and x.device.type == "cpu"
    return FASTER if on_cpu and not (site.training and site.dropout_p > 0) else ""


def torch_is_faster(kind: str, x: Tensor, *, graded: bool) -> str:
    """Why one call of a function of torch's, without a sum before it, is left to torch; "" where it is fused."""
    wide = x.dtype in (torch.float32, torch.float64) and x.device.type == "cpu"
    return ALONE if kind == "layer" and wide and not (graded and x.shape[-1] >= NARROW) else ""


def wants_grad(*tensors: Tensor | None) -> bool:
    """Whether a call here and now keeps what a backward needs."""
    return torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors)
