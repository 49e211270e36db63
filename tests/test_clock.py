"""The clock: medians of interleaved samples that what ran before does not disturb."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from math import comb
from typing import Any

import pytest

from addnorm import clock


class FakeClock:
    """Time that passes only where a function spends it."""

    def __init__(self) -> None:
        self.now = 0.0
        self.calls: list[str] = []

    def spends(self, name: str, *seconds: float) -> Callable[[], None]:
        turns = iter(range(10**9))

        def call() -> None:
            self.calls.append(name)
            self.now += seconds[next(turns) % len(seconds)]

        return call

    def interleaved(self, functions: dict[str, Callable[[], object]], **options: Any) -> dict[str, float]:
        return clock.interleaved(functions, timer=lambda: self.now, lead_in=lambda function: function(), **options)


def test_clock_gives_seconds_per_call() -> None:
    fake = FakeClock()
    times = fake.interleaved({"slow": fake.spends("slow", 0.25), "quick": fake.spends("quick", 2.0**-20)}, rounds=5)
    assert times == {"slow": 0.25, "quick": 2.0**-20}


def test_clock_gives_the_median() -> None:
    fake = FakeClock()
    # a call that does not count and a trial call, then the samples, each after a call that does not count
    seconds = (0, 1, 0, 7, 0, 2, 0, 3, 0, 1000, 0, 1)
    times = fake.interleaved({"f": fake.spends("f", *seconds)}, rounds=5)
    assert times == {"f": 3}


def test_clock_interleaves_and_rotates() -> None:
    fake = FakeClock()
    functions = {name: fake.spends(name, 1.0) for name in "abc"}
    fake.interleaved(functions, rounds=3)
    assert "".join(fake.calls[6:]) == "aabbccbbccaaccaabb"


def test_clock_batches_quick_functions() -> None:
    fake = FakeClock()
    quick = fake.spends("quick", clock.SAMPLE / 8)
    assert clock.batch_size(quick, lambda: fake.now) >= 8
    assert clock.batch_size(fake.spends("slow", 1.0), lambda: fake.now) == 1
    assert clock.batch_size(fake.spends("slow", 1.0), lambda: fake.now, least=8.0) >= 8


def test_clock_takes_a_second_look_at_a_disturbed_reading() -> None:
    fake = FakeClock()
    assert clock.batch_size(fake.spends("f", 8e-3, *[1e-4] * 100), lambda: fake.now) >= 10


def test_clock_that_stands_still_ends() -> None:
    assert clock.batch_size(lambda: None, lambda: 0.0) == clock.MOST_CALLS


def test_clock_keeps_to_its_budget_after_the_fewest_rounds() -> None:
    fake = FakeClock()
    rounds = []
    fake.interleaved({"f": fake.spends("f", 1.0)}, rounds=100, budget=0.5, progress=lambda: rounds.append(1))
    assert len(rounds) == clock.FEWEST


def spinning(seconds: float) -> threading.Thread:
    """A pool's thread that looks for work for a while, as they do after a call."""
    end = time.perf_counter() + seconds

    def look() -> None:
        while time.perf_counter() < end:
            pass

    thread = threading.Thread(target=look)
    thread.start()
    return thread


def test_clock_waits_for_the_pool_of_the_function_before() -> None:
    pool = spinning(0.06)
    clock.alone_and_awake(lambda: None)
    assert not pool.is_alive()


def test_clock_does_not_wait_for_a_pool_that_never_sleeps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clock, "PATIENCE", 0.02)
    pool = spinning(1.0)
    clock.until_idle()
    assert pool.is_alive()
    pool.join()


def test_clock_runs_a_function_until_its_threads_are_awake() -> None:
    start = time.perf_counter()
    calls = []
    clock.alone_and_awake(lambda: calls.append(time.perf_counter()))
    assert calls[0] - start >= clock.WINDOW
    assert calls[-1] - calls[0] >= clock.WARM / 2


def test_clock_rests_the_collector_and_wakes_it_when_a_function_fails() -> None:
    import gc

    def look() -> None:
        assert not gc.isenabled()
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        clock.interleaved({"f": look}, rounds=1)
    assert gc.isenabled()


def test_clock_refuses_no_rounds() -> None:
    with pytest.raises(ValueError, match="rounds must be at least 1, got 0"):
        clock.interleaved({}, rounds=0)


def test_an_interval_is_the_narrowest_that_covers_95_percent() -> None:
    for rounds in range(6, 60):
        low = clock.ratio([float(i) for i in range(rounds)], [1.0] * rounds).low
        missed = [2 * sum(comb(rounds, k) for k in range(int(outer) + 1)) / 2**rounds for outer in (low, low + 1)]
        assert missed[0] <= 0.05 < missed[1]


def test_of_few_rounds_the_interval_is_their_range() -> None:
    assert clock.ratio([3.0, 1.0, 5.0, 2.0, 4.0], [1.0] * 5) == (3, 1, 5)
