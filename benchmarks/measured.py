"""The tables in src/addnorm/fusing/measured.py, which say where `fuse` leaves a norm as it is.

python -m benchmarks.measured alone [--only TEXT]              # norms without a sum, operation by operation
python -m benchmarks.measured compiled [--only TEXT]           # sums and norms between Linears, under Inductor

A cell is the time as it was over the time fused, medians of interleaved runs, CPU time of one thread: above 1 the fused
operation is quicker.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

import addnorm
from addnorm.clock import interleaved
from addnorm.fusing.sites import Site
from addnorm.machine import describe

LAYERS = 4
DROPOUT = 0.1
FLOAT32, BFLOAT16 = torch.float32, torch.bfloat16
TIMER = time.process_time  # what else runs on the machine disturbs it least
WIDTHS = (64, 128, 256, 384, 1024, 4096)
ALONE = [(rows, width, dtype) for dtype in (FLOAT32, BFLOAT16) for width in WIDTHS for rows in (1, 512, 4096)]
COMPILED = [("layer", 384, FLOAT32), ("layer", 1024, FLOAT32), ("rms", 1024, FLOAT32)]
COMPILED += [("layer", 384, BFLOAT16), ("rms", 1024, BFLOAT16)]
ROWS = (16, 512, 2048, 4096)

Call = Callable[[], object]


class Written(nn.Module):
    """RMSNorm as transformers writes it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        return self.weight * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)).to(x.dtype)


class Sublayer(nn.Module):
    """A Linear, dropout, the sum, a norm."""

    def __init__(self, norm: str, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width) if norm == "layer" else Written(width)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x + F.dropout(self.linear(x), DROPOUT, self.training))


PAIRS = {"layer": "layer fused", "rms": "rms fused", "written": "rms fused"}


def alone(rows: int, width: int, dtype: torch.dtype) -> str:
    """A row of the first table: LayerNorm of torch, RMSNorm of torch, RMSNorm written out; inference | training."""
    cells = [alone_cells(rows, width, dtype, training=training) for training in (False, True)]
    return f"{str(dtype)[6:]:9} {width:5} {rows:5} | {' | '.join(cells)}"


def alone_cells(rows: int, width: int, dtype: torch.dtype, *, training: bool) -> str:
    options = {"dtype": dtype, "requires_grad": training}
    weight, bias, x = (torch.randn(*shape, **options) for shape in ((width,), (width,), (rows, width)))
    written = Written(width).to(dtype).requires_grad_(training)
    calls: dict[str, Callable[[], Tensor]] = {
        "layer": lambda: F.layer_norm(x, x.shape[-1:], weight, bias),
        "layer fused": lambda: addnorm.add_norm(x, None, weight, bias),
        "rms": lambda: F.rms_norm(x, x.shape[-1:], weight, 1e-6),
        "written": lambda: written(x),
        "rms fused": lambda: addnorm.add_norm(x, None, weight, norm="rms", eps=1e-6),
    }
    gradient = torch.randn_like(x)
    seconds = interleaved(
        {name: step(call, x, gradient, training) for name, call in calls.items()}, rounds=15, timer=TIMER
    )
    return "  ".join(f"{seconds[before] / seconds[after]:5.2f}" for before, after in PAIRS.items())


def step(call: Callable[[], Tensor], x: Tensor, gradient: Tensor, training: bool) -> Call:
    if not training:
        return torch.no_grad()(call)
    return lambda: torch.autograd.grad(call(), x, gradient)


def compiled(norm: str, width: int, dtype: torch.dtype) -> Iterator[str]:
    """Rows of the second table: inference | training without dropout | with it."""
    torch.manual_seed(0)
    plain = nn.Sequential(*(Sublayer(norm, width) for _ in range(LAYERS))).to(dtype)
    cells: dict[int, list[str]] = {rows: [] for rows in ROWS}
    for training, dropout in ((False, False), (True, False), (True, True)):
        plain.train(dropout)
        torch._dynamo.reset()
        options = {"native": {}, "fused": {"pre_grad_custom_pass": Everything()}}
        models = {name: torch.compile(plain, dynamic=True, options=chosen) for name, chosen in options.items()}
        for rows in ROWS:
            x = torch.randn(rows, width, dtype=dtype, requires_grad=training)
            gradient = torch.randn_like(x)
            steps = {
                name: step(lambda model=model, x=x: model(x), x, gradient, training) for name, model in models.items()
            }
            seconds = interleaved(steps, rounds=11, timer=TIMER)
            cells[rows].append(f"{seconds['native'] / seconds['fused']:5.2f}")
    for rows, found in cells.items():
        yield f"{norm:5} {width:5} {str(dtype)[6:]:9} {rows:5} | {' | '.join(found)}"


class Everything(addnorm.FusePass):
    """Fuses every site, whatever the table says now."""

    def faster(self, site: Site) -> str:
        return ""

    def uuid(self) -> object:
        return f"everything {super().uuid()}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", choices=["alone", "compiled"])
    parser.add_argument(
        "--only", default="", help="those with this in their name, as layer-384-float32, 512-384-float32"
    )
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    machine = describe()
    print(f"{machine.cpu}, one thread, {machine.isa}; torch {machine.torch}; {machine.date[:10]}")
    for case in ALONE if args.table == "alone" else COMPILED:
        *what, dtype = case
        if args.only in "-".join([*map(str, what), str(dtype)[6:]]):
            for row in [alone(*case)] if args.table == "alone" else compiled(*case):
                print(row, flush=True)


if __name__ == "__main__":
    main()
