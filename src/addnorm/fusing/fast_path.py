"""torch's own fast path: a whole encoder layer as one operation, in eval without gradients. It is left to run."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, Node

from .nodes import is_call

REASON = "torch's own fast path runs the whole layer as one operation (nn.TransformerEncoderLayer without gradients)"


class Switch:
    """Holds the fast path off, for all threads, from the first user's start to the last one's end."""

    def __init__(self) -> None:
        self._lock, self._users, self._before = threading.Lock(), 0, True

    @contextmanager
    def off(self) -> Iterator[None]:
        with self._lock:
            if not self._users:
                self._before = torch.backends.mha.get_fastpath_enabled()
                torch.backends.mha.set_fastpath_enabled(False)
            self._users += 1
        try:
            yield
        finally:
            with self._lock:
                self._users -= 1
                if not self._users:
                    torch.backends.mha.set_fastpath_enabled(self._before)


FAST_PATH = Switch()


def fast_layers(graph: Graph) -> Iterator[Node]:
    """The calls of whole encoder layers as one operation in a captured graph."""
    for node in graph.nodes:
        if is_call(node, torch._transformer_encoder_layer_fwd):
            yield node


class NestedEncoders:
    """The model's `nn.TransformerEncoder`s that turn padded inputs into nested tensors.

    They do so in eval without gradients, leave out the padding, and give zeros there. Under capture they do not
    (`torch.compiler.is_compiling`), which would be slower and would give other numbers.
    """

    def __init__(self, model: nn.Module) -> None:
        self.encoders = {
            path: part
            for path, part in model.named_modules()
            if isinstance(part, nn.TransformerEncoder) and part.use_nested_tensor
        }

    def take_over(self) -> bool:
        """Whether one of them could do so in a call here and now."""
        return any(not encoder.training and not graded(encoder) for encoder in self.encoders.values())


def runs(layer: Any, src: Any) -> bool:
    """Whether an encoder layer takes it for an input here and now, by what its forward asks of both."""
    if layer.training or not isinstance(src, Tensor) or graded(layer, src):
        return False
    attention = layer.self_attn
    return (
        torch.backends.mha.get_fastpath_enabled()
        and src.dim() == 3
        and attention.batch_first
        and attention.in_proj_bias is not None
        and attention._qkv_same_embed_dim
        and attention.num_heads % 2 == 0
        and bool(layer.activation_relu_or_gelu)
        and layer.norm1.eps == layer.norm2.eps
        and not torch.is_autocast_enabled()  # on a GPU, as torch asks
    )


def graded(module: nn.Module, *inputs: Tensor) -> bool:
    """Whether a call here and now would keep what the gradients of the module's parameters, or of its inputs, need."""
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (*inputs, *module.parameters()))
