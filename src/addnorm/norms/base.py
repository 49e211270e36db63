"""What a norm is: statistics per row, and how they act forward and backward.

In ``y = (weight_offset + weight) * xhat + bias`` a norm gives xhat. The C++ and Triton kernels take the
same policy as a template parameter and as a jit function.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor

from ..checks import check_number


class Norm(ABC):
    """A norm policy. Statistics have the shape ``(..., stats_per_row)``; all arithmetic is in z's dtype.

    A policy with learned numbers of its own names them in `own` and keeps each in an attribute of that name: numbers,
    or tensors of shape ``()`` or ``(1,)``, which then differentiate.
    """

    name: ClassVar[str]
    stats_per_row: ClassVar[int]
    bias_by_default: ClassVar[bool]  # whether the field's modules of this norm have a bias
    one_gain: ClassVar[bool] = False  # whether one learned number is the gain of all columns

    @property
    def own(self) -> Mapping[str, float | Tensor]:
        """The learned numbers of the norm itself, by name."""
        return {}

    def with_own(self, **numbers: float | Tensor) -> Norm:
        """This policy with other learned numbers, all else being equal; a module passes its parameters this way."""
        other = copy.copy(self)
        for name, value in numbers.items():
            object.__setattr__(other, name, own_number(name, value))  # the class may be frozen
        return other

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(self.own)})"

    def initial_gain(self, width: int) -> float:
        """Where a module's gain starts."""
        return 1.0

    @abstractmethod
    def statistics(self, z: Tensor, eps: float) -> Tensor:
        """What the forward needs of each row, and keeps for the backward."""

    @abstractmethod
    def normalise(self, z: Tensor, stats: Tensor) -> Tensor:
        """xhat."""

    @abstractmethod
    def backward(self, g: Tensor, z: Tensor, xhat: Tensor, stats: Tensor) -> Tensor:
        """The gradient of z from g, the gradient of xhat."""


def own_number(name: str, value: float | Tensor) -> float | Tensor:
    """One of a norm's own numbers, checked."""
    if not isinstance(value, Tensor):
        check_number(name, value)
    elif value.shape not in ((), (1,)):  # others would make y's shape another
        raise ValueError(f"{name} must be a number or a tensor of shape () or (1,), got {tuple(value.shape)}")
    return value
