"""torch's own encoder and decoder layers, post-norm and pre-norm."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from ...functional import add_norm, add_norm_stream
from ..fast_path import REASON, runs
from .base import Local, Part, affine, dropped, is_plain


class Layer(Local):
    """What both have: sublayers that each end in a dropout, a norm for each, before or after."""

    methods = ("forward", "_sa_block", "_ff_block", "_mha_block")
    own: type[nn.Module]
    norms: tuple[str, ...]

    @classmethod
    def matches(cls, module: nn.Module) -> bool:
        """Whether the module runs torch's code, not a subclass's."""
        own = isinstance(module, cls.own) and "forward" not in module.__dict__
        return own and all(getattr(type(module), name, 0) is getattr(cls.own, name, 0) for name in cls.methods)

    def parts(self) -> tuple[Part, ...]:
        if self.module.norm_first:  # the first norm's sum is made in the layer before
            return tuple(Part(name, "layer", ("dropout", "add"), stream=True) for name in self.norms[1:])
        return tuple(Part(name, "layer", ("dropout", "add")) for name in self.norms)

    def left_to(self, *args: Any, **kwargs: Any) -> str:
        module = self.module
        if not all(is_plain(getattr(module, name), nn.LayerNorm) for name in self.norms):
            return "one of its norms has been replaced"
        if not all(is_plain(getattr(module, name), nn.Dropout) for name in self.drops):
            return "one of its dropouts has been replaced"
        return ""

    def chain(self, x: Tensor, *branches: Any) -> Tensor:
        """All sublayers: a branch is a function of its input; after each come its dropout, the sum and a norm."""
        module = self.module
        dropouts = [dropped(getattr(module, name)) for name in self.drops]
        if not module.norm_first:
            for branch, dropout, name in zip(branches, dropouts, self.norms, strict=True):
                x = add_norm(branch(x), x, **dropout, **affine(getattr(module, name)))
            return x
        y = getattr(module, self.norms[0])(x)
        for branch, dropout, name in zip(branches[:-1], dropouts[:-1], self.norms[1:], strict=True):
            y, x = add_norm_stream(branch(y), x, **dropout, **affine(getattr(module, name)))
        return x + getattr(module, self.drops[-1])(branches[-1](y))

    def feed_forward(self, x: Tensor) -> Tensor:
        """As the layer's ``_ff_block``, without the last dropout."""
        module: Any = self.module
        return module.linear2(module.dropout(module.activation(module.linear1(x))))


class EncoderLayer(Layer):
    """`torch.nn.TransformerEncoderLayer`, wherever torch's own fast path does not run."""

    own, norms, drops = nn.TransformerEncoderLayer, ("norm1", "norm2"), ("dropout1", "dropout2")
    bypassed = norms + drops

    def left_to(self, *args: Any, **kwargs: Any) -> str:
        src = args[0] if args else kwargs.get("src")
        return REASON if runs(self.module, src) else super().left_to()

    def forward(
        self,
        src: Tensor,
        src_mask: Tensor | None = None,
        src_key_padding_mask: Tensor | None = None,
        is_causal: bool = False,
    ) -> Tensor:
        module: Any = self.module
        padding = F._canonical_mask(
            src_key_padding_mask, "src_key_padding_mask", F._none_or_dtype(src_mask), "src_mask", src.dtype
        )
        mask = F._canonical_mask(src_mask, "src_mask", None, "", src.dtype, False)

        def attend(x: Tensor) -> Tensor:
            options = {"attn_mask": mask, "key_padding_mask": padding, "need_weights": False, "is_causal": is_causal}
            return module.self_attn(x, x, x, **options)[0]

        return self.chain(src, attend, self.feed_forward)


class DecoderLayer(Layer):
    """`torch.nn.TransformerDecoderLayer`."""

    own, norms = nn.TransformerDecoderLayer, ("norm1", "norm2", "norm3")
    drops = ("dropout1", "dropout2", "dropout3")
    bypassed = norms + drops

    def forward(
        self,
        tgt: Tensor,
        memory: Tensor,
        tgt_mask: Tensor | None = None,
        memory_mask: Tensor | None = None,
        tgt_key_padding_mask: Tensor | None = None,
        memory_key_padding_mask: Tensor | None = None,
        tgt_is_causal: bool = False,
        memory_is_causal: bool = False,
    ) -> Tensor:
        module: Any = self.module

        def attend(x: Tensor) -> Tensor:
            options = {"attn_mask": tgt_mask, "key_padding_mask": tgt_key_padding_mask, "need_weights": False}
            return module.self_attn(x, x, x, is_causal=tgt_is_causal, **options)[0]

        def look(x: Tensor) -> Tensor:
            options = {"attn_mask": memory_mask, "key_padding_mask": memory_key_padding_mask, "need_weights": False}
            return module.multihead_attn(x, memory, memory, is_causal=memory_is_causal, **options)[0]

        return self.chain(tgt, attend, look, self.feed_forward)
