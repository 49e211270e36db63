"""Where a norm was measured to be as fast or faster as it is, and is left so. By benchmarks/measured.py.

Without a sum before it: time of torch's ``layer_norm``, ``rms_norm`` and of RMSNorm written out over that of the fused
norm, each by itself. Medians, AMD EPYC (Zen 3, AVX2), one thread, torch 2.13.0.

===============  ======  ====================  ====================
dtype, width     rows    inference             training
.                        layer  rms   written  layer  rms   written
===============  ======  ====================  ====================
float32, 64      512     0.69   1.7   2.2      0.86   2.7   2.9
float32, 128     512     0.85   2.0   2.4      0.88   3.2   3.3
float32, 256     512     0.89   2.1   2.4      1.30   7.4   5.2
float32, 384     512     0.87   1.8   2.0      1.51   5.2   5.1
.                1       1.62   5.3   8.0      1.26   3.8   4.0
float32, 1024    512     0.95   2.2   2.3      2.10   30    28
.                4096    7.77   15    18       1.04   13    12
bfloat16, 64     512     1.27   2.2   2.7      1.23   3.3   3.4
bfloat16, 384    512     1.48   3.3   3.5      1.50   5.0   7.1
.                4096    1.35   3.7   6.9      1.14   5.2   4.9
===============  ======  ====================  ====================

Between Linears that Inductor compiles:
the time of a stack of 4 x (Linear, dropout, sum, norm) as Inductor compiles it over that with the fused operation,
dynamic lengths, in the same way.

=====================  ========  =====================  =====================  =====================
norm, width, dtype     rows      inference              training, no dropout   training, dropout 0.1
=====================  ========  =====================  =====================  =====================
@@
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


def torch_is_faster(kind: str, x: Tensor, *, backward: bool) -> str:
    """Why one call of a function of torch's, without a sum before it, is left to torch; "" where it is fused."""
    wide = x.dtype in (torch.float32, torch.float64) and x.device.type == "cpu"
    return ALONE if kind == "layer" and wide and not (backward and x.shape[-1] >= NARROW) else ""


def wants_grad(*tensors: Tensor | None) -> bool:
    """Whether a call here and now keeps what a backward needs."""
    return torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors)
