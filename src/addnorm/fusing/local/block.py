"""A pre-norm block of vision transformers, as timm writes it, with LayerScale and stochastic depth."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ...functional import add_norm_stream
from .base import Local, Part, affine, is_plain

PARTS = {"norm1", "attn", "ls1", "drop_path1", "norm2", "mlp", "ls2", "drop_path2"}


class Block(Local):
    """``x = x + drop_path1(ls1(attn(norm1(x))))``, then ``x + drop_path2(ls2(mlp(norm2(x))))``."""

    drops = ("drop_path1", "drop_path2")
    bypassed = ("norm2",)

    @classmethod
    def matches(cls, module: nn.Module) -> bool:
        return {*module._modules} == PARTS and is_plain(module._modules["norm2"], nn.LayerNorm)

    def parts(self) -> tuple[Part, ...]:
        return (Part("norm2", "layer", ("add",), stream=True),)

    def left_to(self, *args: Any, **kwargs: Any) -> str:
        if len(args) != 1 or kwargs:
            return "it is called with more than x"
        return "" if is_plain(self.module._modules["norm2"], nn.LayerNorm) else "its norm2 has been replaced"

    def forward(self, x: Tensor) -> Tensor:
        module: Any = self.module
        branch = module.drop_path1(module.ls1(module.attn(module.norm1(x))))
        y, stream = add_norm_stream(branch, x, **affine(module.norm2))
        return stream + module.drop_path2(module.ls2(module.mlp(y)))
