"""What one small Add & Norm costs with its code and data in the caches, and when large weights have just gone through.

python benchmarks/cold.py [--rows 1] [--width 768]

Cold: a matrix of 36 MB is read before each call, as the linear layers of a model are at a single token. Medians.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from statistics import median

import torch
import torch.nn.functional as F  # noqa: N812

import addnorm
from addnorm.clock import interleaved
from addnorm.machine import cpu_model


def cold(call: Callable[[], object], weights: torch.Tensor, rounds: int = 200) -> float:
    """Median seconds of a call behind a matrix-vector product."""
    vector, times = torch.randn(weights.shape[1]), []
    for _ in range(rounds):
        weights.mv(vector)
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return median(times)


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=int, default=1)
    parser.add_argument("--width", type=int, default=768)
    args = parser.parse_args()
    x, residual = torch.randn(2, args.rows, args.width)
    weight, bias = torch.ones(args.width), torch.zeros(args.width)
    operator, operands = torch.ops.addnorm.forward, (x, residual, weight, bias, True, False)
    calls: dict[str, Callable[[], object]] = {
        "addnorm.add_norm": lambda: addnorm.add_norm(x, residual, weight, bias),
        "the operator, as a compiled graph calls it": lambda: operator.default(*operands),
        "the operator, through the dispatcher": lambda: operator(*operands),
        "F.layer_norm(x + residual)": lambda: F.layer_norm(x + residual, (args.width,), weight, bias),
        "x + residual": lambda: x + residual,
    }
    print(f"{cpu_model()}, {torch.get_num_threads()} threads, torch {torch.__version__}, {args.rows}x{args.width}")
    hot, weights = interleaved(calls, rounds=50), torch.randn(3072, 3072)
    for name, call in calls.items():
        print(f"{name}: hot {1e6 * hot[name]:.1f} us, cold {1e6 * cold(call, weights):.1f} us")


if __name__ == "__main__":
    main()
