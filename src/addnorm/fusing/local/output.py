"""A Linear, dropout, the sum with the skip, LayerNorm: the end of a sublayer in BERT and the many models after it."""

from __future__ import annotations

import inspect
from typing import Any

from torch import Tensor, nn

from ...functional import add_norm
from .base import Local, Part, affine, is_plain, rate

NAMES = {"dense", "dropout", "LayerNorm"}


class Output(Local):
    """``LayerNorm(dropout(dense(x)) + residual)``."""

    bypassed = ("dropout", "LayerNorm")

    @staticmethod
    def matches(module: nn.Module) -> bool:
        names = list(inspect.signature(module.forward).parameters)
        return {*module._modules} == NAMES and names == ["hidden_states", "input_tensor"] and plain_ends(module)

    def parts(self) -> tuple[Part, ...]:
        return (Part("LayerNorm", "layer", ("dropout", "add")),)

    def left_to(self, *args: Any, **kwargs: Any) -> str:
        return "" if plain_ends(self.module) else "one of its modules has been replaced"

    def forward(self, hidden_states: Tensor, input_tensor: Tensor) -> Tensor:
        module: Any = self.module
        x = module.dense(hidden_states)
        return add_norm(x, input_tensor, dropout_p=rate(module.dropout), **affine(module.LayerNorm))


def plain_ends(module: nn.Module) -> bool:
    return is_plain(module._modules["dropout"], nn.Dropout) and is_plain(module._modules["LayerNorm"], nn.LayerNorm)
