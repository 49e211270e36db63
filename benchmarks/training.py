"""What a training step of a few rows is made of, torch's autograd by itself among it.

python benchmarks/training.py [--rows 1] [--width 768] [--dtype float32]

The last line is the derivative of one multiplication by a number: what torch.autograd.grad takes whatever it runs.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

import addnorm
from addnorm.clock import interleaved
from addnorm.machine import cpu_model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=int, default=1)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--dtype", default="float32", help="of torch, by default float32")
    args = parser.parse_args()
    dtype = getattr(torch, args.dtype)
    x, residual, incoming = torch.randn(3, args.rows, args.width, dtype=dtype).unbind()
    weight, bias = torch.ones(args.width, dtype=dtype), torch.zeros(args.width, dtype=dtype)
    leaves = [t.requires_grad_() for t in (x, residual, weight, bias)]
    ours: Callable[[], Tensor] = partial(addnorm.add_norm, *leaves)

    def eager() -> Tensor:
        return F.layer_norm(x + residual, (args.width,), weight, bias)

    def backward(y: Tensor, *leaves: Tensor) -> Callable[[], object]:
        return lambda: torch.autograd.grad(y, leaves, incoming, retain_graph=True)

    def step(forward: Callable[[], Tensor]) -> Callable[[], object]:
        return lambda: torch.autograd.grad(forward(), leaves, incoming)

    seconds = interleaved(
        {
            "addnorm: forward": ours,
            "addnorm: backward": backward(ours(), *leaves),
            "addnorm: both": step(ours),
            "eager: forward": eager,
            "eager: backward": backward(eager(), *leaves),
            "eager: both": step(eager),
            "the backward of 2 * x": backward(2 * x, x),
        },
        rounds=101,
    )
    threads = torch.get_num_threads()
    print(f"{cpu_model()}, {threads} threads, torch {torch.__version__}, {args.rows}x{args.width} {args.dtype}")
    for name, taken in seconds.items():
        print(f"{1e6 * taken:7.1f} us  {name}")


if __name__ == "__main__":
    main()
