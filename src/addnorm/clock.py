"""The clock: medians of interleaved samples, so that what slows the machine slows every function alike."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate
from statistics import median
from typing import Any, NamedTuple

Function = Callable[[], object]
Timer = Callable[[], float]

SAMPLE = 1e-3  # seconds that a sample lasts at least: far above the clock's resolution
CERTAIN = 5e-2  # seconds that no disturbance makes of a call shorter than `SAMPLE`
WINDOW = 1e-2  # seconds without work after which thread pools count as asleep; the system accounts for work in ticks
PATIENCE = 0.25  # seconds after which a pool that never sleeps is left to itself
WARM = 5e-3  # seconds until the system has given threads that woke up a processor each
MOST_CALLS = 100_000  # in a batch, for a clock that stands still
FEWEST = 5  # rounds that are made whatever `budget` says


def interleaved(functions: dict[str, Function], **how: Any) -> dict[str, float]:
    """Median seconds per call of each function; the arguments are those of `samples`.

    >>> sorted(interleaved({"sum": lambda: sum(range(100)), "nothing": lambda: None}, rounds=3))
    ['nothing', 'sum']
    """
    return {name: median(taken) for name, taken in samples(functions, **how).items()}


def alone_and_awake(function: Function) -> None:
    """Runs a function until it has its processors for itself.

    Threads that wait for work spin for a while before they sleep, OpenMP's for milliseconds, ONNX Runtime's for tens of
    them: what runs meanwhile in another pool shares a processor with them, and takes several times as long.
    """
    until_idle()
    start = time.perf_counter()
    function()
    while time.perf_counter() - start < WARM:
        function()


def until_idle() -> None:
    """Waits until no thread of the process is at work."""
    start = time.perf_counter()
    while time.perf_counter() - start < PATIENCE:
        before = time.process_time()
        time.sleep(WINDOW)
        if time.process_time() - before < WINDOW / 10:
            return


def samples(
    functions: dict[str, Function],
    *,
    rounds: int,
    budget: float = float("inf"),
    progress: Callable[[], object] | None = None,
    least: float = SAMPLE,
    timer: Timer = time.perf_counter,
    lead_in: Callable[[Function], object] = alone_and_awake,
) -> dict[str, list[float]]:
    """Seconds per call of each function, one number a round.

    A sample is a batch of calls that lasts at least `least` seconds, after some that are not counted: what the function
    before left in the caches, and to the scheduler, is no part of it. A round takes one sample of each function, each
    round starting with another one. Results are dropped at once, and Python's garbage collector rests.

    Args:
        functions: What to time, by name.
        rounds: Samples of each function.
        budget: No new round begins after this many seconds, `FEWEST` rounds aside.
        progress: Called after each round.
        least: A call that takes longer is timed as one.
        timer: The clock.
        lead_in: Called with a function before each of its samples, to run it uncounted.
    """
    if rounds < 1:
        raise ValueError(f"rounds must be at least 1, got {rounds}")
    names = list(functions)
    found: dict[str, list[float]] = {name: [] for name in names}
    with no_collection():
        batches = {}
        for name in names:
            lead_in(functions[name])
            batches[name] = batch_size(functions[name], timer, least)
        start = timer()
        for turn in range(rounds):
            if turn >= FEWEST and timer() - start > budget:
                break
            for name in rotated(names, turn):
                lead_in(functions[name])
                found[name].append(sample(functions[name], batches[name], timer))
            if progress is not None:
                progress()
    return found


class Ratio(NamedTuple):
    """The median of the rounds' ratios, and its 95 % confidence interval."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.3f}x [{self.low:.3f}, {self.high:.3f}]"


def ratio(above: Sequence[float], below: Sequence[float]) -> Ratio:
    """How the `samples` of two functions compare, round by round: what slows a round slows both in it.

    The interval is by order statistics, which assumes nothing about the noise: the narrowest that covers the median
    with at least 95 %. Below 6 rounds none does, and it is their range.

    >>> print(ratio([2.0, 2.0, 6.0], [1.0, 2.0, 2.0]))
    2.000x [1.000, 3.000]
    """
    found = sorted(x / y for x, y in zip(above, below, strict=True))
    rounds = len(found)
    tails = accumulate(math.comb(rounds, k) for k in range(rounds))  # of 2**rounds: at most k rounds on one side
    outer = max(0, sum(2 * 20 * tail <= 2**rounds for tail in tails) - 1)  # both tails are at most 5 %
    return Ratio(median(found), found[outer], found[-1 - outer])


def batch_size(function: Function, timer: Timer, least: float = SAMPLE) -> int:
    """How many calls last at least so many seconds."""
    calls = 1
    while True:
        taken = calls * sample(function, calls, timer)
        if taken < CERTAIN:  # one reading that something disturbed would make every batch too short
            taken = min(taken, calls * sample(function, calls, timer))
        if taken >= least or calls >= MOST_CALLS:
            return calls
        # Aim past the mark, as later calls may be quicker, but do not trust a reading near zero.
        calls = min(10 * calls, int(1.2 * calls * least / max(taken, 1e-9)) + 1)


def sample(function: Function, calls: int, timer: Timer) -> float:
    """Seconds per call of one batch."""
    start = timer()
    for _ in range(calls):
        function()
    return (timer() - start) / calls


def rotated(names: list[str], turn: int) -> list[str]:
    turn %= len(names) or 1
    return names[turn:] + names[:turn]


@contextmanager
def no_collection() -> Iterator[None]:
    """Collects garbage now, and none inside."""
    was_enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
