"""A local folder with a Hugging Face model, and what feeds and trains any such model in the same way."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from .minilm import LONGEST, Batch

NEEDED = ("config.json", "tokenizer_config.json")


def check_folder(path: Path) -> None:
    """
    Raises:
        ValueError: no folder, or one that lacks the model's description, its tokenizer or safetensors weights.
    """
    if not path.is_dir():
        raise ValueError(f"{path} is no folder: give one with a model's config.json, tokenizer and safetensors weights")
    missing = [name for name in NEEDED if not (path / name).is_file()]
    if not list(path.glob("*.safetensors")):
        missing.append("*.safetensors (weights in other formats are not read)")
    if missing:
        raise ValueError(f"{path} lacks {', '.join(missing)}")


def load_model(path: Path) -> nn.Module:
    """The model, in eval mode: from safetensors alone, never with code of its own."""
    from transformers import AutoModel

    options = {"local_files_only": True, "trust_remote_code": False, "use_safetensors": True}
    return AutoModel.from_pretrained(str(path), **options).eval()


def load(path: Path) -> tuple[Any, Callable[[Sequence[str]], Batch]]:
    """Model, in eval mode, and tokenizer, from files alone and without running code from them."""
    from transformers import AutoTokenizer

    check_folder(path)
    model = load_model(path)
    tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token

    def coded(sentences: Sequence[str]) -> Batch:
        found = tokenizer(list(sentences), padding=True, truncation=True, max_length=LONGEST, return_tensors="pt")
        return {name: found[name] for name in ("input_ids", "attention_mask")}

    return model, coded


def pair_loss(output: Any, batch: Batch) -> Tensor:
    """Each even sentence of a batch is to find the one after it: the cross-entropy over cosines of mean vectors."""
    hidden = output[0]
    real = batch["attention_mask"].unsqueeze(-1).to(hidden.dtype)
    embeddings = F.normalize((hidden * real).sum(1) / real.sum(1).clamp(min=1), dim=-1)
    pairs = len(embeddings) // 2
    similarity = 20 * embeddings[0 : 2 * pairs : 2] @ embeddings[1::2].T
    return F.cross_entropy(similarity, torch.arange(pairs, device=similarity.device))
