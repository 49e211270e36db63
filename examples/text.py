"""The text that both examples learn, character by character: a chapter of Alice's Adventures in Wonderland."""

from __future__ import annotations

from importlib import resources

import torch
from torch import Tensor


def load() -> tuple[Tensor, Tensor, str]:
    """Characters as numbers, nine tenths to train on and one to check with, and the alphabet."""
    text = resources.files("addnorm.demo").joinpath("text.txt").read_text(encoding="utf-8").partition("\n")[2]
    alphabet = "".join(sorted(set(text)))
    codes = torch.tensor([alphabet.index(character) for character in text])
    split = len(codes) * 9 // 10
    return codes[:split], codes[split:], alphabet


def windows(codes: Tensor, batch: int, length: int) -> Tensor:
    """Random pieces of the text, ``(batch, length)``."""
    starts = torch.randint(len(codes) - length + 1, (batch, 1))
    return codes[starts + torch.arange(length)]
