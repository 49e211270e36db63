"""Where a norm gains nothing sure by being fused, and is left as it is. Measured by benchmarks/measured.py.

The tables are the time as it was over the time fused. AMD EPYC (Zen 4, AVX-512), one thread, medians of interleaved
runs, torch 2.13.0; others used the machine, so that a tenth is noise. benchmarks/results/measured.txt has all rows, and
those of AVX2.

A norm without a sum before it, by itself: torch's ``layer_norm`` and ``rms_norm``, and RMSNorm written out.

================  ======  ===========================  ===========================
dtype, width      rows    inference                    training
.                         layer    rms      written    layer    rms      written
================  ======  ===========================  ===========================
float32, 64       1       1.32     3.6      5.5        1.13     5.0      4.8
.                 512     1.52     3.8      4.5        1.18     3.5      3.6
.                 4096    2.05     2.18     2.25       1.18     10       8.2
float32, 256      1       1.71     4.0      5.8        1.31     4.4      4.8
.                 512     2.07     2.85     3.3        1.38     5.1      5.3
.                 4096    2.21     31       31         1.44     27       23
float32, 1024     1       1.48     4.0      5.6        1.12     4.4      4.1
.                 512     2.27     3.9      3.8        6.2      19       16
.                 4096    2.58     31       32         2.15     20       12
float32, 4096     1       1.52     3.7      5.1        1.14     5.1      4.6
.                 512     2.52     5.4      6.3        2.80     22       24
.                 4096    6.9      22       22         6.4      31       30
bfloat16, 64      1       1.61     7.5      6.9        1.12     4.0      4.8
.                 512     2.34     3.7      4.8        1.54     4.7      4.5
.                 4096    2.65     2.58     4.3        1.59     7.2      10
bfloat16, 256     1       1.37     5.0      6.6        1.23     4.8      5.4
.                 512     3.0      4.2      5.0        1.94     5.0      5.2
.                 4096    3.1      29       5.1        2.65     19       19
bfloat16, 1024    1       1.56     4.6      6.2        1.21     5.1      5.2
.                 512     4.7      5.0      5.1        2.82     26       22
.                 4096    3.4      26       23         2.74     45       24
bfloat16, 4096    1       1.42     4.3      5.8        1.25     5.3      5.2
.                 512     2.44     9.2      7.2        3.5      20       12
.                 4096    1.90     47       42         4.2      60       54
================  ======  ===========================  ===========================

So each is fused, but in mode "modules", where each call of a module asks in Python whether things are as they were:
torch's own float32 and float64 ``layer_norm`` stays without gradients, and in narrow rows, where a call of a few rows
gains less than that takes.

A stack of 4 x (Linear, dropout, sum, norm), compiled by Inductor for all lengths:

======================  ======  ==========  ====================  =====================
norm, width, dtype      rows    inference   training, no dropout  training, dropout 0.1
======================  ======  ==========  ====================  =====================
layer, 384, float32     16      1.08        1.00                  1.31
.                       512     0.86        1.01                  1.83
.                       2048    1.07        1.07                  1.86
.                       4096    1.08        1.01                  1.90
layer, 1024, float32    16      0.97        0.98                  1.06
.                       512     1.02        1.02                  1.38
.                       2048    0.95        1.09                  1.36
.                       4096    1.04        1.09                  1.38
rms, 1024, float32      16      0.99        0.99                  1.16
.                       512     0.90        1.07                  1.31
.                       2048    0.97        1.05                  1.35
.                       4096    0.99        1.07                  1.35
layer, 384, bfloat16    16      1.11        0.98                  1.48
.                       512     1.10        0.99                  2.53
.                       2048    1.10        1.07                  2.64
.                       4096    1.13        1.08                  2.57
rms, 1024, bfloat16     16      1.03        0.99                  1.24
.                       512     1.02        1.03                  1.68
.                       2048    1.05        1.00                  1.61
.                       4096    1.00        1.12                  1.76
======================  ======  ==========  ====================  =====================

Without dropout some shapes gain and others lose, few by more than the noise; with it, all gain. Other devices were not
measured: there the operation is used.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .nodes import example
from .sites import Site

NARROW = 768  # columns
TORCH_FASTER = (
    "torch's float32 and float64 layer_norm alone, without gradients or in narrow rows, gains less than calls here take"
)
INDUCTOR_AS_FAST = "without dropout, Inductor's own fusion was measured to be about as fast"


def left_to_inductor(site: Site) -> str:
    """Why a site is left to Inductor; "" where the fused operation is used."""
    x = example(site.x)
    on_cpu = x is not None and x.device.type == "cpu"
    return INDUCTOR_AS_FAST if on_cpu and not (site.training and site.dropout_p > 0) else ""


def torch_is_faster(x: Tensor, *, backward: bool) -> str:
    """Why one call of torch's `nn.LayerNorm` is left to torch in mode "modules"; "" where it is fused."""
    wide = x.dtype in (torch.float32, torch.float64) and x.device.type == "cpu"
    return TORCH_FASTER if wide and not (backward and x.shape[-1] >= NARROW) else ""
