"""A Linear, dropout, the sum with the skip, LayerNorm: the end of a sublayer in BERT and the many models after it."""

from __future__ import annotations

import inspect
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from ...functional import add_norm
from .base import Local, Part, affine, is_plain, rate

PARTS = {"dense": nn.Linear, "dropout": nn.Dropout, "LayerNorm": nn.LayerNorm}


class Output(Local):
    """``LayerNorm(dropout(dense(x)) + residual)``."""

    bypassed = tuple(PARTS)

    @staticmethod
    def matches(module: nn.Module) -> bool:
        names = list(inspect.signature(module.forward).parameters)
        return {*module._modules} == {*PARTS} and names == ["hidden_states", "input_tensor"] and whole(module)

    def parts(self) -> tuple[Part, ...]:
        bias = ("branch_bias",) if self.module.dense.bias is not None else ()  # pyright: ignore
        return (Part("LayerNorm", "layer", (*bias, "dropout", "add")),)

    def left_to(self, *args: Any, **kwargs: Any) -> str:
        return "" if whole(self.module) else "one of its modules has been replaced"

    def forward(self, hidden_states: Tensor, input_tensor: Tensor) -> Tensor:
        module: Any = self.module
        dense, norm = module.dense, module.LayerNorm
        x = F.linear(hidden_states, dense.weight)
        return add_norm(x, input_tensor, branch_bias=dense.bias, dropout_p=rate(module.dropout), **affine(norm))


def whole(module: nn.Module) -> bool:
    return all(is_plain(module._modules.get(name), kind) for name, kind in PARTS.items())
