"""A model and its fused copy: made, verified, measured. `addnorm fuse` and the demonstration are both built of this."""

from __future__ import annotations

import copy
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..clock import interleaved
from ..fusing import fuse
from ..machine import cpu_model, version
from ..progress import Progress, silent
from .folder import Batch, Tokenizer, UnusableError, batch_of, check_installed, folder_of, load
from .result import Errors, Machine

Loss = Callable[[Any, Batch], Tensor]  # of a model's output for a batch
Step = Callable[[], object]


@dataclass(frozen=True)
class Pair:
    """The original ("before"), a fused copy ("after") and a copy in float64 ("exact"), all in eval mode."""

    path: Path
    models: dict[str, Any]
    tokenizer: Tokenizer
    handle: Any  # of `addnorm.fuse`

    @property
    def report(self) -> dict[str, Any]:
        """What was fused: complete once the fused model has been called."""
        return self.handle.report.to_dict()

    def batch(self, sentences: Sequence[str]) -> Batch:
        """Sentences as the model's inputs."""
        return batch_of(self.models["before"], self.tokenizer, sentences)


def load_pair(name: str, progress: Progress = silent) -> Pair:
    """From a folder or a package, in float32.

    Raises:
        ImportError: transformers is not installed.
        UnusableError: there is no model of text that can be loaded without running its code.
    """
    path = folder_of(name)
    check_installed()
    progress("load and fuse the model", 0, 1)
    model, tokenizer = load(path)
    model = model.float()
    models = {"before": model, "after": copy.deepcopy(model), "exact": copy.deepcopy(model).double()}
    pair = Pair(path, models, tokenizer, fuse(models["after"]))
    progress("load and fuse the model", 1, 1)
    return pair


def projection(output: Any, batch: Batch) -> Tensor:
    """A loss for any model: its last hidden states along one random direction. Their squares would not do: after a norm
    the sum of them is constant and the gradient nothing but rounding."""
    hidden = output[0]
    direction = torch.randn(hidden.shape[-1], generator=torch.Generator().manual_seed(0))
    return (hidden @ direction.to(hidden)).mean()


def verify(pair: Pair, batch: Batch, loss: Loss, progress: Progress = silent) -> Errors:
    """Last hidden states and gradients of the original and of the fused model, against float64; without dropout.

    Raises:
        UnusableError: the original can not be run on the batch.
    """
    check_runs(pair.models["before"], batch)
    found = {}
    for done, (kind, model) in enumerate(pair.models.items()):
        progress("compare with the original and with float64", done, len(pair.models))
        found[kind] = results(model.eval(), batch, loss)
    progress("compare with the original and with float64", len(pair.models), len(pair.models))
    return Errors(*(relative({kind: both[index] for kind, both in found.items()}) for index in (0, 1)))


@torch.no_grad()
def check_runs(model: Any, batch: Batch) -> None:
    """So that what a model can not do is not laid to its fused copy."""
    try:
        model(**batch)
    except (AttributeError, IndexError, RuntimeError, TypeError, ValueError) as error:
        raise UnusableError(f"{type(model).__name__} can not be run on the text: {error}") from error


def results(model: Any, batch: Batch, loss: Loss) -> tuple[Tensor, Tensor]:
    """The last hidden state, and the gradient of all parameters in one vector."""
    model.zero_grad()
    output = model(**batch)
    loss(output, batch).backward()
    grads = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    model.zero_grad()
    return output[0].detach().double(), grads.double()


def relative(found: dict[str, Tensor]) -> dict[str, float]:
    exact = found["exact"]
    return {kind: ((found[kind] - exact).norm() / exact.norm()).item() for kind in ("before", "after")}


def measure(
    label: str,
    models: dict[str, Any],
    batch: Batch,
    *,
    training: bool,
    loss: Loss,
    rounds: int,
    beside: Mapping[str, Step] | None = None,
    progress: Progress = silent,
) -> dict[str, float]:
    """Median seconds of one use of each model, and of each function `beside` them, interleaved in one process.

    A use is an inference, or a training step with dropout, which changes the weights.
    """
    use = training_step if training else inference
    functions = {kind: use(model.train(training), batch, loss) for kind, model in models.items()} | dict(beside or {})
    for each in functions.values():  # captures, and the tries of the sites, before the clock runs
        each()
    progress(label, 0, rounds)
    done = iter(range(1, rounds + 1))
    times = interleaved(functions, rounds=rounds, budget=8.0, progress=lambda: progress(label, next(done), rounds))
    progress(label, rounds, rounds)
    return times


def inference(model: Any, batch: Batch, loss: Loss) -> Step:
    return torch.no_grad()(lambda: model(**batch)[0])


def training_step(model: Any, batch: Batch, loss: Loss) -> Step:
    """Forward with dropout, loss, backward and AdamW."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6)

    def step() -> None:
        optimizer.zero_grad()
        loss(model(**batch), batch).backward()
        optimizer.step()

    return step


def machine(report: dict[str, Any]) -> Machine:
    """This machine, and the backends that took the fused calls."""
    return Machine(
        cpu=cpu_model(),
        threads=torch.get_num_threads(),
        torch=torch.__version__,
        transformers=version("transformers"),
        python=platform.python_version(),
        system=platform.platform(terse=True),
        addnorm=version("addnorm"),
        backend=", ".join(sorted({site["backend"] for site in report["sites"] if site["fused"]})) or "none",
    )
