"""A pre-norm `Stack` against the same model written with x = x + f(norm(x)) and nn.LayerNorm, interleaved.

python benchmarks/stack.py [--layers 12] [--width 768] [--tokens 128] [--compile] [--alone]

Each round takes one sample of each, every round another one first; what is given is the median of the rounds' ratios,
and in brackets its 95 % confidence interval by order statistics, which assumes nothing about the noise. A second copy
of the written model is the control: its ratio to the first should be 1.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from statistics import median

import torch
from torch import Tensor, nn

import addnorm
from addnorm.clock import ratio, samples
from addnorm.machine import cpu_model


class Written(nn.Module):
    """The model as one writes it."""

    def __init__(self, sublayers: list[nn.Module], d: int, dropout: float) -> None:
        super().__init__()
        self.sublayers = nn.ModuleList(sublayers)
        self.norms = nn.ModuleList(nn.LayerNorm(d) for _ in sublayers)
        self.final_norm, self.dropout = nn.LayerNorm(d), nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        for f, norm in zip(self.sublayers, self.norms, strict=True):
            x = x + self.dropout(f(norm(x)))
        return self.final_norm(x)


class Attention(nn.Module):
    """Self-attention."""

    def __init__(self, d: int, heads: int) -> None:
        super().__init__()
        self.heads, self.qkv, self.out = heads, nn.Linear(d, 3 * d), nn.Linear(d, d)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.out(nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(-2))


def sublayers(layers: int, d: int) -> list[nn.Module]:
    made: list[nn.Module] = []
    for _ in range(layers):
        made += [Attention(d, d // 64), nn.Sequential(nn.Linear(d, 4 * d), nn.GELU(), nn.Linear(4 * d, d))]
    return made


def inference(model: Callable[[Tensor], Tensor], x: Tensor) -> Callable[[], object]:
    return torch.no_grad()(lambda: model(x))


def training(model: nn.Module, x: Tensor) -> Callable[[], object]:
    """Forward and backward into gradients that are there: fresh ones of all parameters would time the page faults."""
    g = torch.randn_like(x)
    return lambda: model(x).backward(g)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    for name, default in (("layers", 12), ("width", 768), ("tokens", 128), ("rounds", 101), ("seconds", 20)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--alone", action="store_true", help="only the sums and norms: the sublayers do nothing")
    args = parser.parse_args()
    print(f"{cpu_model()}, {torch.get_num_threads()} threads, torch {torch.__version__}, {vars(args)}")
    torch.manual_seed(0)
    base = [nn.Identity()] * (2 * args.layers) if args.alone else sublayers(args.layers, args.width)
    x = torch.randn(1, args.tokens, args.width)
    for mode, dropout in (("inference", 0.0), ("training", 0.0), ("training", 0.1)):
        models: dict[str, nn.Module] = {
            "written": Written(base, args.width, dropout),  # the same sublayers: their weights lie in memory once
            "stack": addnorm.Stack(base, args.width, dropout=dropout),
            "control": Written(base, args.width, dropout),
        }
        for model in models.values():
            model.train(mode == "training")
        if dropout == 0:
            torch.testing.assert_close(models["stack"](x), models["written"](x), rtol=1e-3, atol=1e-4)
        if args.compile:
            for model in models.values():
                model.compile()
        step = inference if mode == "inference" else training
        steps = {name: step(model, x) for name, model in models.items()}
        times = samples(steps, rounds=args.rounds, budget=args.seconds)
        written, stack = (1e3 * median(times[name]) for name in ("written", "stack"))
        gain, control = (ratio(times["written"], times[name]) for name in ("stack", "control"))
        print(
            f"{mode}, dropout {dropout:g}: written {written:.2f} ms, stack {stack:.2f} ms, {gain}, "
            f"control {control}, {len(times['stack'])} rounds",
            flush=True,
        )


if __name__ == "__main__":
    main()
