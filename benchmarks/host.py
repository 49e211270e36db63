"""What the host does for a call on a GPU, timed without one: ``PYTHONPATH=src python benchmarks/host.py``.

The calls are those of the GPU backend, down to Triton's launcher, whose place is taken by a function that does nothing.
The tensors lie in the CPU's memory, which nothing reads or writes. On a GPU the driver's own share comes on top.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

import addnorm
from addnorm import add_norm, add_norm_stream, machine
from addnorm.backends.triton import backend, run
from addnorm.clock import interleaved

ROWS, WIDTH = 8, 4096


class NoDriver:
    """A driver for one sm_90 that launches nothing."""

    def __init__(self) -> None:
        self.utils = SimpleNamespace(
            load_binary=lambda *arguments: (1, 1, 128, 0, 1024),  # 128 registers
            get_device_properties=lambda device: {"max_shared_mem": 232448},
        )
        self.get_current_device: Callable[[], None] = lambda: None  # as the index of a CPU's device is
        self.get_current_stream: Callable[[Any], int] = lambda device: 0
        self.get_current_target = lambda: GPUTarget("cuda", 90, 32)
        self.launcher_cls = lambda source, metadata: lambda *arguments: None


def calls() -> dict[str, Callable[[], object]]:
    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, dtype=torch.bfloat16)

    x, residual, weight, bias = normal(ROWS, WIDTH), normal(ROWS, WIDTH), normal(WIDTH), normal(WIDTH)
    leaves = [t.clone().requires_grad_() for t in (x, residual, weight, bias)]
    arriving = [normal(ROWS, WIDTH), normal(ROWS, WIDTH)]

    def differentiate(results: tuple[torch.Tensor, ...]) -> object:
        return torch.autograd.grad(results, leaves, arriving)

    def train(dropout_p: float = 0.0) -> object:
        return differentiate(add_norm_stream(*leaves, dropout_p=dropout_p, backend="triton"))

    return {
        "the results' memory alone": lambda: (torch.empty_like(x), torch.empty_like(x)),
        "add_norm": lambda: add_norm(x, residual, weight, bias, backend="triton"),
        "add_norm_stream": lambda: add_norm_stream(x, residual, weight, bias, backend="triton"),
        "the operator, as a compiled graph calls it": lambda: torch.ops.addnorm.forward.default(
            x, residual, weight, bias, True, False, backend="triton"
        ),
        "forward and backward": train,
        "forward and backward, with dropout": lambda: train(dropout_p=0.1),
        "an autograd.Function that only makes the same tensors": lambda: differentiate(Makes.apply(*leaves)),
    }


class Makes(torch.autograd.Function):
    """What torch's own way to differentiate a kernel costs without the kernel: only the tensors are made."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> Any:
        y, stream = torch.empty_like(x), torch.empty_like(x)
        ctx.save_for_backward(stream, x.new_empty((ROWS, 3), dtype=torch.float32), weight)
        return y, stream

    @staticmethod
    def backward(ctx: Any, *arriving: torch.Tensor) -> Any:
        stream, _, weight = ctx.saved_tensors
        dx, partials = torch.empty_like(stream), stream.new_empty((2, ROWS, WIDTH), dtype=torch.float32)  # noqa: F841
        return dx, dx, torch.empty_like(weight), torch.empty_like(weight)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=4.0, help="no new round begins after these")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    args = parser.parse_args()
    driver.set_active(NoDriver())  # pyright: ignore[reportArgumentType]
    backend.obstacle = lambda kind, index: ""
    run.processors = lambda device: 132
    seconds = interleaved(calls(), rounds=101, budget=args.seconds)
    found = machine.describe()
    if args.json:
        print(json.dumps({"microseconds": {k: v * 1e6 for k, v in seconds.items()}, "cpu": found.cpu}))
        return
    print(f"{found.cpu}, torch {found.torch}, triton {found.triton}, addnorm {addnorm.__version__}")
    for name, taken in seconds.items():
        print(f"{1e6 * taken:7.1f} us  {name}")


if __name__ == "__main__":
    main()
