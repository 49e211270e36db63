"""What `addnorm.Monitor` costs a training step of MiniLM (6 x 384): plain, after `addnorm.fuse`, under torch.compile.

python benchmarks/monitor.py [--how plain fused compiled] [--batch 16] [--tokens 128] [--rounds 9]

Sampled steps and those between are timed in turn on one model; what the first sample costs beyond the others is the
capture. What a step between samples costs beyond one without a monitor is timed on a module that does nothing.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

import addnorm
from addnorm.clock import interleaved, no_collection
from addnorm.demo import minilm
from addnorm.machine import cpu_model

EVERY = 50


def batch(sequences: int, tokens: int) -> dict[str, Tensor]:
    """Random words, full sequences: a step's cost does not depend on the words."""
    ids = torch.randint(1000, 30000, (sequences, tokens), generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def prepared(how: str) -> Any:
    model: Any = minilm.load()[0].train()
    if how == "fused":
        addnorm.fuse(model)
    return torch.compile(model) if how == "compiled" else model


def timed_step(model: nn.Module, inputs: dict[str, Tensor]) -> Callable[[], float]:
    """Forward, backward and AdamW; gives its seconds."""
    optimiser = torch.optim.AdamW(model.parameters(), 1e-6)

    def run() -> float:
        start = time.perf_counter()
        model(**inputs)[0].square().mean().backward()
        optimiser.step()
        optimiser.zero_grad()
        return time.perf_counter() - start

    return run


def measure(how: str, inputs: dict[str, Tensor], rounds: int) -> str:
    model, seen = prepared(how), []
    step = timed_step(model, inputs)
    step(), step()  # what fusing and compiling cost is not the monitor's
    with addnorm.Monitor(model, every=2, log=seen.append), no_collection():
        first = step()
        step()
        times = [(step(), step()) for _ in range(rounds)]
    sampled, between = (median(taken) for taken in zip(*times, strict=True))
    ratio, capture = sampled / between, first - sampled
    return (
        f"{how}: a step {1e3 * between:.0f} ms, a sampled one {1e3 * sampled:.0f} ms, {ratio:.3f}x; "
        f"on average at every={EVERY} {100 * (ratio - 1) / EVERY:+.2f} %; the capture, once, {capture:.2f} s, "
        f"{capture / between:.1f} steps; {len(seen[-1]) - 1} numbers a sample"
    )


def counting() -> str:
    """What the monitor adds to a call that it does not sample."""
    inputs, models = torch.zeros(1), {"without": nn.Identity(), "between": nn.Identity()}
    monitor = addnorm.Monitor(models["between"], every=10**12, log=print)
    monitor._call.step = 1  # the sample of step 0 is not what is timed
    times = interleaved({name: lambda each=each: each(inputs) for name, each in models.items()}, rounds=99)
    return f"between samples: {1e6 * (times['between'] - times['without']):.2f} µs a call"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--how", choices=("plain", "fused", "compiled"), nargs="*")
    for name, default in (("batch", 16), ("tokens", 128), ("rounds", 9)):
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    print(f"{cpu_model()}, {torch.get_num_threads()} threads, torch {torch.__version__}, {args.batch}x{args.tokens}")
    print(counting(), flush=True)
    for how in args.how or ("plain", "fused", "compiled"):
        torch.manual_seed(0)
        print(measure(how, batch(args.batch, args.tokens), args.rounds), flush=True)


if __name__ == "__main__":
    main()
