"""A model fused, called and undone by several threads at once: one captures, each norm call is counted once."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from addnorm.fusing import fuse, handle, modules
from addnorm.fusing.base import FusedCall
from addnorm.fusing.measured import NARROW
from addnorm.fusing.modules import LocalCall
from addnorm.fusing.place import PLACE, put

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:torch.*"),  # Inductor's own imports
    pytest.mark.filterwarnings("ignore:.*is deprecated:FutureWarning:torch.*"),
    pytest.mark.filterwarnings("ignore:addnorm.fuse found nothing"),  # in mode "modules": the norms are narrow ones
]
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
            barrier.wait(1)
        return function(*args, **kwargs)

    return entered


def together(*functions: Callable[[], Any]) -> list[Any]:
    """What the functions give or raise, each in a thread of its own, begun at the same time."""
    start, results = threading.Barrier(len(functions)), [None] * len(functions)

    def run(i: int) -> None:
        start.wait()
        try:
            results[i] = functions[i]()
        except Exception as error:
            results[i] = error

    threads = [threading.Thread(target=run, args=(i,), daemon=True) for i in range(len(functions))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads), "they wait for each other"
    return results


@pytest.mark.parametrize("mode", ["eager", "inductor"])
def test_one_captures_while_the_others_wait(mode: str) -> None:
    model, x = Block().eval(), torch.randn(3, 16)
    before = model(x)
    with fuse(model, mode=mode) as fused:
        for _ in range(2):
            for after in together(*[lambda: model(x)] * THREADS):
                torch.testing.assert_close(after, before)
        assert fused._call.captures == (2 if mode == "inductor" else 1)  # to try the sites, and to compile them
    assert [(site.norm, site.call, site.fused) for site in fused.report.sites] == [
        ("norm", 0, True),
        ("norm", 1, True),
    ], str(fused.report)


def test_a_first_pass_of_several_threads_counts_each_call_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LocalCall, "watch", in_step(LocalCall.watch, threading.Barrier(THREADS)))
    model, x = Block().eval(), torch.randn(3, 16)
    before = model(x)
    with fuse(model, mode="modules") as fused:
        for after in together(*[lambda: model(x)] * THREADS):
            torch.testing.assert_close(after, before)
    assert [(site.norm, site.call) for site in fused.report.sites] == [("norm", 0), ("norm", 1)], str(fused.report)


class Nested(nn.Module):
    """A fused model around a fused model, captured in two pieces."""

    def __init__(self) -> None:
        super().__init__()
        self.block, self.norm = Block(), nn.LayerNorm(16)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x + x.sin())
        torch._dynamo.graph_break()
        return self.block(y)


@pytest.mark.filterwarnings("ignore:the fused Block is compiled once more")
@pytest.mark.parametrize("mode", ["eager", "inductor", "modules"])
def test_a_fused_model_in_a_fused_model_waits_for_nobody(mode: str) -> None:
    model, x = Nested().eval(), torch.randn(3, 16)
    before, inner = model(x), model.block(x)
    with fuse(model.block, mode=mode), fuse(model, mode=mode):
        after = together(*[lambda: model(x), lambda: model.block(x)] * 2)
    for found, expected in zip(after, [before, inner] * 2, strict=True):
        torch.testing.assert_close(found, expected)


class Again(nn.Module):
    """A model that calls itself, behind what can not be captured."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(16)

    def forward(self, x: Tensor, times: int = 2) -> Tensor:
        x = self.norm(x + x.sin())
        torch._dynamo.graph_break()
        return self(x, times - 1) if times else x


@pytest.mark.parametrize("mode", ["eager", "modules"])
def test_a_model_that_calls_itself_waits_for_nobody(mode: str) -> None:
    model, x = Again().eval(), torch.randn(3, 16)
    before = model(x)
    with fuse(model, mode=mode):
        for after in together(*[lambda: model(x)] * 2):
            torch.testing.assert_close(after, before)


@pytest.mark.parametrize(("first", "second"), [("eager", "eager"), ("modules", "modules"), ("modules", "eager")])
def test_two_threads_that_fuse_one_model(first: str, second: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if one came after the other."""
    monkeypatch.setattr(FusedCall, "install", in_step(FusedCall.install, threading.Barrier(2)))
    model = Nested()
    places = [vars(module).get(PLACE) for module in model.modules()]
    found = together(lambda: fuse(model, mode=first), lambda: fuse(model, mode=second))
    if first == second:
        assert found[0] is found[1]
    else:
        error = next(each for each in found if isinstance(each, ValueError))
        assert "is fused in mode" in str(error)
    fused = next(each for each in found if isinstance(each, handle.Handle))
    assert vars(model)[PLACE] is fused._call
    fused.undo()
    assert [vars(module).get(PLACE) for module in model.modules()] == places


def test_undone_while_another_thread_puts_back_what_rested(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = nn.Sequential(nn.LayerNorm(NARROW)), torch.randn(3, NARROW)
    fused = fuse(model, mode="modules", example=x)
    assert PLACE not in vars(model[0])  # left to torch without gradients
    undo = threading.Thread(target=fused.undo)

    def late(*args: Any) -> Any:
        undo.start()
        undo.join(0.5)
        return put(*args)

    monkeypatch.setattr(modules, "put", late)
    model(x)
    undo.join()
    assert not [name for name, module in model.named_modules() if PLACE in vars(module)]
