"""A place inside a sublayer where a placement may put a norm."""

from __future__ import annotations

from torch import Tensor, nn

from ..checks import check_count


class Slot(nn.Module):
    """The identity, until a placement that norms inside the sublayer (Sub-LN, NormFormer, HybridNorm) fills it.

    A feed-forward network offers ``inner_norm`` before its second matrix, an attention ``inner_norm`` before its
    output projection and ``q_norm``, ``k_norm``, ``v_norm`` behind its other projections.

    Args:
        width: Size of the last dimension of what passes.

    >>> import torch
    >>> class FFN(nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.fc1, self.fc2, self.inner_norm = nn.Linear(8, 32), nn.Linear(32, 8), Slot(32)
    ...     def forward(self, x):
    ...         return self.fc2(self.inner_norm(self.fc1(x).relu()))
    >>> FFN().inner_norm.norm is None
    True
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        check_count("width", width)
        self.width = width
        self.norm: nn.Module | None = None

    def fill(self, norm: nn.Module) -> None:
        """
        Raises:
            ValueError: where the slot is filled already.
        """
        self.check_empty()
        self.norm = norm

    def check_empty(self) -> None:
        if self.norm is not None:
            raise ValueError("the slot holds a norm already: a sublayer with slots can serve one placement only")

    def forward(self, x: Tensor) -> Tensor:
        return x if self.norm is None else self.norm(x)

    def extra_repr(self) -> str:
        return str(self.width)
