"""A model from a local folder, before and after fusing: do the results agree, and what is gained."""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..clock import interleaved
from ..fusing import fuse
from .folder import load_model
from .minilm import load_sentences

Batch = dict[str, Tensor]
SENTENCES, LONGEST = 16, 128
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")


@dataclass(frozen=True)
class Fused:
    """What fusing did to a model. Errors are relative to float64, dropout off; times medians, in seconds."""

    path: str
    model: str
    training: bool
    report: dict[str, Any]
    output_error: dict[str, float]  # "before" and "after"
    gradient_error: dict[str, float]
    seconds: dict[str, float]

    @property
    def holds(self) -> bool:
        """Whether the fused model is as close to float64 as the original: at most twice its error, and a rounding."""
        return all(e["after"] <= 2 * e["before"] + 2**-24 for e in (self.output_error, self.gradient_error))

    @property
    def speedup(self) -> float:
        return self.seconds["before"] / self.seconds["after"]

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "holds": self.holds, "speedup": self.speedup}


def folder_of(name: str) -> Path:
    """The folder of a model, given itself or as a package that carries one.

    Raises:
        ValueError: no such folder or package, no model in it, or only a pickled one, which could run code.
    """
    path = Path(name)
    if not path.is_dir():
        spec = importlib.util.find_spec(name) if name.isidentifier() else None
        if spec is None or spec.origin is None:
            raise ValueError(f"{name} is neither a folder nor an installed package")
        found = sorted(Path(spec.origin).parent.rglob("config.json"))
        if not found:
            raise ValueError(f"the package {name} carries no model: no config.json in it")
        path = max((file.parent for file in found), key=lambda each: any(each.glob("*.safetensors")))
    if not (path / "config.json").exists():
        raise ValueError(f"{path} holds no model: no config.json")
    if not any(path.glob("*.safetensors")):
        pickled = sorted(file.name for pattern in PICKLES for file in path.glob(pattern))
        what = f"only {', '.join(pickled)}, a pickle, which could run code" if pickled else "no weights"
        raise ValueError(f"{path} holds {what}: *.safetensors is needed")
    return path


def loaded(path: Path) -> Any:
    """The model in float32 and eval mode.

    Raises:
        ValueError: what the folder holds is no model that transformers can load without running the folder's code.
    """
    from safetensors import SafetensorError

    try:
        return load_model(path).float()
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise ValueError(f"{path} can not be loaded: {error}") from error


def batch_of(path: Path, lines: list[str]) -> Batch:
    """Sentences as the model's inputs.

    Raises:
        ValueError: there is no tokenizer.json beside the weights, or no text.
    """
    from tokenizers import Tokenizer

    file = path / "tokenizer.json"
    if not file.exists():
        raise ValueError(f"{path} has no tokenizer.json: the text can not be read")
    if not any(line.strip() for line in lines):
        raise ValueError("the text is empty")
    fast: Any = Tokenizer.from_file(str(file))
    fast.enable_truncation(LONGEST)
    fast.enable_padding()
    coded = fast.encode_batch([line for line in lines if line.strip()][:SENTENCES])
    return {
        "input_ids": torch.tensor([each.ids for each in coded]),
        "attention_mask": torch.tensor([each.attention_mask for each in coded]),
    }


def run(
    name: str, lines: list[str] | None, *, training: bool, progress: Callable[[str, int, int], None], rounds: int = 9
) -> Fused:
    """Fuse a local model, compare it with the original and with float64, and time both, interleaved."""
    path = folder_of(name)
    progress("load the model and the text", 0, 3)
    model = loaded(path)
    batch = batch_of(path, load_sentences() if lines is None else lines)
    if getattr(model.config, "is_encoder_decoder", False):
        batch["decoder_input_ids"] = batch["input_ids"]
    fused = copy.deepcopy(model)
    handle = fuse(fused)
    progress("compare with the original and with float64", 1, 3)
    models = {"before": model, "after": fused, "exact": copy.deepcopy(model).double()}
    found = {kind: results(each, batch) for kind, each in models.items()}
    outputs, gradients = (errors({kind: pair[index] for kind, pair in found.items()}) for index in (0, 1))
    progress("measure", 2, 3)
    steps = {kind: step(models[kind].train(training), batch, training) for kind in ("before", "after")}
    for each in steps.values():
        each()  # captures, before the clock runs
    seconds = interleaved(steps, rounds=rounds, warmup=1, budget=8.0)
    progress("measure", 3, 3)
    kind = type(model).__name__
    return Fused(str(path), kind, training, handle.report.to_dict(), outputs, gradients, seconds)


def results(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """The last hidden state, and the gradient of all parameters of its sum of squares, in one vector."""
    model.zero_grad()
    output = model(**batch)[0]
    output.square().sum().backward()
    grads = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]).double()
    model.zero_grad()
    return output.detach().double(), grads


def errors(found: dict[str, Tensor]) -> dict[str, float]:
    exact = found["exact"]
    return {kind: ((found[kind] - exact).norm() / exact.norm()).item() for kind in ("before", "after")}


def step(model: nn.Module, batch: Batch, training: bool) -> Callable[[], object]:
    """An inference, or a training step with dropout: forward, backward, AdamW."""
    if not training:
        return torch.no_grad()(lambda: model(**batch)[0])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6)

    def train() -> None:
        optimizer.zero_grad()
        model(**batch)[0].square().mean().backward()
        optimizer.step()

    return train
