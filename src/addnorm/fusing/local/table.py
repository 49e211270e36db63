"""The kinds of modules that run fused by themselves, and how one may be read."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from .base import Local
from .block import Block
from .norm import Norm, readings
from .output import Output
from .torch_layers import DecoderLayer, EncoderLayer

KINDS: dict[type[Local], Callable[[nn.Module], list[Local]]] = {
    EncoderLayer: lambda module: [EncoderLayer(module)],
    DecoderLayer: lambda module: [DecoderLayer(module)],
    Output: lambda module: [Output(module)],
    Block: lambda module: [Block(module)],
    Norm: readings,
}
