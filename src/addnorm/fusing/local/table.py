"""The kinds of modules that run fused by themselves."""

from __future__ import annotations

from .base import Local
from .block import Block
from .norm import Norm
from .output import Output
from .torch_layers import DecoderLayer, EncoderLayer

KINDS: tuple[type[Local], ...] = (EncoderLayer, DecoderLayer, Output, Block, Norm)
