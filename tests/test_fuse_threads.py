"""A fused model called from several threads at once: each norm call is counted once."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from addnorm.fusing import fuse
from addnorm.fusing.callers import Callers
from addnorm.fusing.modules import LocalCall

THREADS = 3


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mix, self.norm = nn.Linear(16, 16), nn.LayerNorm(16)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x + self.mix(x))
        return self.norm(x + torch.tanh(x))


def in_step(function: Callable[..., Any], barrier: threading.Barrier) -> Callable[..., Any]:
    """The function, which all threads enter together as long as all still call it."""

    def entered(*args: Any, **kwargs: Any) -> Any:
        with contextlib.suppress(threading.BrokenBarrierError):
            barrier.wait(5)
        return function(*args, **kwargs)

    return entered


@pytest.mark.filterwarnings("ignore:addnorm.fuse found nothing")  # in mode "modules"
@pytest.mark.parametrize(("mode", "place", "name"), [("eager", Callers, "named"), ("modules", LocalCall, "watch")])
def test_the_first_call_from_several_threads(
    mode: str, place: type, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(place, name, in_step(getattr(place, name), threading.Barrier(THREADS)))
    model, x, found = Block().eval(), torch.randn(3, 16), []
    before = model(x)
    threads = [threading.Thread(target=lambda: found.append(model(x))) for _ in range(THREADS)]
    with fuse(model, mode=mode) as handle:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(found) == THREADS
    assert all((after - before).abs().max() < 1e-5 for after in found)
    assert [(site.norm, site.call) for site in handle.report.sites] == [("norm", 0), ("norm", 1)], str(handle.report)
    assert handle.report.fused == (2 if mode == "eager" else 0)
