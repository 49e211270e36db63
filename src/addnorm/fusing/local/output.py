"""A Linear, dropout, the sum with the skip, LayerNorm: the end of a sublayer in BERT and the many models after it."""

from __future__ import annotations

import inspect
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from ...functional import add_norm
from .base import Local, Part, affine, dropped, is_plain

NAMES = {"dense", "dropout", "LayerNorm"}


class Output(Local):
    """``LayerNorm(dropout(dense(x)) + residual)``."""

    drops = ("dropout",)
    bypassed = ("dense", "dropout", "LayerNorm")

    @classmethod
    def matches(cls, module: nn.Module) -> bool:
        names = list(inspect.signature(module.forward).parameters)
        return {*module._modules} == NAMES and names == ["hidden_states", "input_tensor"] and plain_ends(module)

    def parts(self) -> tuple[Part, ...]:
        bias = () if self.dense_bias() is None else ("branch_bias",)
        return (Part("LayerNorm", "layer", (*bias, "dropout", "add")),)

    def dense_bias(self) -> Tensor | None:
        """The Linear's bias, where that is a Linear: as adapters have it, it may be another module that is called."""
        dense: Any = self.module.dense
        return dense.bias if is_plain(dense, nn.Linear) else None

    def left_to(self, *args: Any, **kwargs: Any) -> str:
        return "" if plain_ends(self.module) else "one of its modules has been replaced"

    def forward(self, hidden_states: Tensor, input_tensor: Tensor) -> Tensor:
        module: Any = self.module
        bias = self.dense_bias()
        x = module.dense(hidden_states) if bias is None else F.linear(hidden_states, module.dense.weight)
        options = {"branch_bias": bias, **dropped(module.dropout), **affine(module.LayerNorm)}
        return add_norm(x, input_tensor, **options)


def plain_ends(module: nn.Module) -> bool:
    return is_plain(module._modules["dropout"], nn.Dropout) and is_plain(module._modules["LayerNorm"], nn.LayerNorm)
