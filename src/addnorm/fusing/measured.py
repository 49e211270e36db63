"""Where a norm was measured to be as fast or faster as it is, and is left so. By benchmarks/measured.py.

The tables are the time as it was over the time fused. AMD EPYC (Zen 3, AVX2), one thread, medians of interleaved runs,
torch 2.13.0; others used the machine, so that a tenth is noise. benchmarks/results/measured.txt has another machine's,
a Zen 4 with AVX-512.

A norm without a sum before it, by itself: torch's ``layer_norm`` and ``rms_norm``, and RMSNorm written out.

================  ======  ===========================  ===========================
dtype, width      rows    inference                    training
.                         layer    rms      written    layer    rms      written
================  ======  ===========================  ===========================
float32, 64       512     0.69     1.7      2.2        0.86     2.7      2.9
float32, 128      512     0.85     2.0      2.4        0.88     3.2      3.3
float32, 256      512     0.89     2.1      2.4        1.30     7.4      5.2
float32, 384      1       1.62     5.3      8.0        1.26     3.8      4.0
.                 512     0.87     1.8      2.0        1.51     5.2      5.1
.                 4096    6.6      12       17         0.92     23       20
float32, 1024     512     0.95     2.2      2.3        2.10     31       28
.                 4096    7.8      15       18         1.04     13       12
bfloat16, 64      1       1.68     6.4      9.2        1.24     4.0      4.3
.                 512     1.68     2.7      3.6        1.23     3.6      3.6
bfloat16, 128     512     1.30     3.0      3.5        1.21     4.6      4.2
bfloat16, 256     512     1.22     2.6      2.9        1.20     12       5.2
bfloat16, 384     1       1.59     5.7      8.1        1.18     3.8      4.3
.                 512     1.26     2.5      2.8        1.29     7.6      7.8
.                 4096    2.46     19       15         1.26     14       15
bfloat16, 1024    512     1.26     2.6      2.6        1.79     7.2      7.4
.                 4096    2.93     16       13         1.39     20       20
bfloat16, 4096    512     1.25     4.3      4.0        1.33     15       15
================  ======  ===========================  ===========================

So bfloat16 is fused everywhere, and in float32 all but torch's ``layer_norm`` without gradients, where a few
microseconds are won or lost except in results of megabytes (torch takes fresh memory for them), and in narrow rows. The
rule may not look at the number of rows: it holds for all lengths. So it starts where few rows gain too: in 256 rows,
trained with the gradients of weight and bias, 384 columns measured 0.9, 512 1.02, 768 1.07 and 1024 1.06; whole blocks
of 256 columns with their norms alone fused trained at 0.97 of torch's speed. With AVX-512 the kernels gain more:
torch's float32 ``layer_norm`` without gradients measured 1.1 to 2.1, but 0.6 and 0.7 at 8 and 16 MB.

A stack of 4 x (Linear, dropout, sum, norm), compiled by Inductor for all lengths:

=====================  ========  =====================  =====================  =====================
norm, width, dtype     rows      inference              training, no dropout   training, dropout 0.1
=====================  ========  =====================  =====================  =====================
layer, 384, float32    16        0.84                   1.40                   2.16
.                      512       1.02                   0.88                   1.81
.                      2048      1.05                   0.98                   1.91
.                      4096      1.10                   1.18                   1.98
layer, 1024, float32   16        1.00                   1.01                   1.14
.                      512       1.01                   1.02                   1.47
.                      2048      1.03                   1.11                   1.42
.                      4096      1.04                   1.09                   1.47
rms, 1024, float32     16        1.00                   0.77                   1.12
.                      512       1.01                   0.96                   1.44
.                      2048      1.15                   1.09                   1.37
.                      4096      1.02                   1.08                   1.40
=====================  ========  =====================  =====================  =====================

Without dropout some shapes gain and others lose, few by more than the noise; with it, all gain. So it is with AVX-512,
in bfloat16 too: 0.9 to 1.1 without dropout, 1.1 to 2.6 with it. Other devices were not measured: there the operation is
used.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .nodes import example
from .sites import Site

NARROW = 768  # columns, below which torch's float32 layer_norm trains as fast
TORCH_FASTER = "torch's layer_norm was measured to be as fast alone, in float32 without gradients or in narrow rows"
INDUCTOR_FASTER = "Inductor's own fusion was measured to be faster where no dropout is drawn"


def inductor_is_faster(site: Site) -> str:
    """Why a site is left to Inductor; "" where the fused operation is used."""
    x = example(site.x)
    on_cpu = x is not None and x.device.type == "cpu"
    return INDUCTOR_FASTER if on_cpu and not (site.training and site.dropout_p > 0) else ""


def torch_is_faster(kind: str, x: Tensor, *, backward: bool) -> str:
    """Why one call of a function of torch's, without a sum before it, is left to torch; "" where it is fused."""
    wide = x.dtype in (torch.float32, torch.float64) and x.device.type == "cpu"
    return TORCH_FASTER if kind == "layer" and wide and not (backward and x.shape[-1] >= NARROW) else ""
