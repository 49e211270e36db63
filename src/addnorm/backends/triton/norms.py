"""The norms as jit functions, handed to the one forward and the one backward text as constants; see addnorm/norms.

The sums are of z - shift and of its square, in the backward of g and of g * xhat. What a norm does not use, the
compiler leaves out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import triton
import triton.language as tl


@triton.jit
def divide(a, b):
    """Rounded to nearest: Triton's `/` is not, in float32, and a constant row must give its bias to the bit."""
    return tl.div_rn(a, b) if a.dtype == tl.float32 else a / b


@triton.jit
def rsqrt(v):
    return tl.div_rn(1.0, tl.sqrt_rn(v)) if v.dtype == tl.float32 else 1.0 / tl.sqrt(v)


@triton.jit
def both_sums(a, b):
    """The sums along the rows of two matrices, in one reduction, which waits for the other warps once."""
    return tl.split(tl.sum(tl.join(a, b), 1, keep_dims=True))


@triton.jit
def layer_statistics(shift, sum_1, sum_2, count, eps):
    """(shift, e, 1/s): what the rounding of the mean took from it is e, and the mean is shift + e, unevaluated."""
    e = divide(sum_1, count)
    v = divide(sum_2, count) - e * e
    return (shift, e, rsqrt(tl.where(v < 0, 0.0, v) + eps))  # written so that NaN survives


@triton.jit
def layer_normalise(z, stats):
    return ((z - stats[0]) - stats[1]) * stats[2]


@triton.jit
def layer_backward(g, xhat, stats, mean_g, mean_gxhat):
    return (g - mean_g - xhat * mean_gxhat) * stats[2]


@triton.jit
def rms_statistics(shift, sum_1, sum_2, count, eps):
    return (rsqrt(divide(sum_2, count) + eps), shift)  # Triton would unwrap a tuple of one; the shift is 0, unused


@triton.jit
def rms_normalise(z, stats):
    return z * stats[0]


@triton.jit
def rms_backward(g, xhat, stats, mean_g, mean_gxhat):
    return (g - xhat * mean_gxhat) * stats[0]


@dataclass(frozen=True)
class Policy:
    """A norm: whether its sums are about the row's mean, how many statistics it keeps, and its functions."""

    shifts: bool
    stats: int
    statistics: Any
    normalise: Any
    backward: Any


POLICIES = {
    "layer": Policy(True, 3, layer_statistics, layer_normalise, layer_backward),
    "rms": Policy(False, 1, rms_statistics, rms_normalise, rms_backward),
}
