"""The flags and the training loop of both examples."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
from text import windows
from torch import Tensor, nn

from addnorm.placements import PLACEMENTS

LENGTH, BATCH = 64, 16
Loss = Callable[[nn.Module, Tensor], Tensor]


def flags(about: str, steps: int) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=about.partition("\n")[0])
    parser.add_argument("--placement", choices=PLACEMENTS, default="pre", help="where the norms stand (default: pre)")
    parser.add_argument("--steps", type=int, default=steps, help=f"training steps (default: {steps})")
    return parser.parse_args()


def fit(model: nn.Module, loss: Loss, train: Tensor, check: Tensor, steps: int) -> None:
    """AdamW on random pieces of the text; every 100 steps the loss on text that it has not seen."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    start = time.perf_counter()
    for step in range(1, steps + 1):
        found = loss(model, windows(train, BATCH, LENGTH))
        optimizer.zero_grad()
        found.backward()
        optimizer.step()
        if step % 100 == 0 or step == steps:
            model.eval()
            with torch.no_grad():
                held_out = loss(model, windows(check, 64, LENGTH)).item()
            model.train()
            seconds = time.perf_counter() - start
            print(f"step {step}: loss {found.item():.2f}, on unseen text {held_out:.2f}, {seconds:.0f} s", flush=True)
