"""What a norm is: statistics per row, and how they act forward and backward.

In ``y = (weight_offset + weight) * xhat + bias`` a norm gives xhat. The C++ and Triton kernels take the
same policy as a template parameter and as a jit function.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from torch import Tensor


class Norm(ABC):
    """A norm policy. Statistics have the shape ``(..., stats_per_row)``; all arithmetic is in z's dtype."""

    name: ClassVar[str]
    stats_per_row: ClassVar[int]
    bias_by_default: ClassVar[bool]  # whether the field's modules of this norm have a bias

    @abstractmethod
    def statistics(self, z: Tensor, eps: float) -> Tensor:
        """What the forward needs of each row, and keeps for the backward."""

    @abstractmethod
    def normalise(self, z: Tensor, stats: Tensor) -> Tensor:
        """xhat."""

    @abstractmethod
    def backward(self, g: Tensor, xhat: Tensor, stats: Tensor) -> Tensor:
        """The gradient of z from g, the gradient of xhat."""
