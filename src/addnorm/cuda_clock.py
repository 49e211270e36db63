"""The GPU's clock: times of replayed CUDA graphs, so that the host is not what is measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from .clock import interleaved, sample
from .words import first_line

GRAPH = 2e-4  # seconds that a graph lasts at least: the gaps between graphs are some microseconds
MOST_CALLS = 100  # in a graph
TRIAL = 10  # calls in a first graph, and replays of it, which say how many a graph needs


class CudaClock:
    """Median seconds of calls, interleaved, on the current device and stream, which must not be the default stream:
    capture wants one of its own."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.last: torch.cuda.Event | None = None

    def times(
        self, calls: Mapping[str, Callable[[], object]], *, rounds: int, budget: float
    ) -> tuple[dict[str, float], dict[str, str]]:
        """Seconds by name, and how each was timed: by a graph of several calls, or where a call can not be captured
        by the calls themselves between two events."""
        replays, clocks, sizes = {}, {}, {}
        for name, call in calls.items():
            call()  # what is compiled at first is not captured
            try:
                sizes[name] = self.size(call)
                replays[name], clocks[name] = self.graph(call, sizes[name]), f"graph of {sizes[name]}"
            except RuntimeError as error:  # what waits for the device or draws on the CPU can not be captured
                replays[name], sizes[name] = call, 1
                clocks[name] = f"events, no graph: {first_line(error)}"
        taken = interleaved(replays, rounds=rounds, budget=budget, timer=self.now, lead_in=self.lead_in)
        return {name: seconds / sizes[name] for name, seconds in taken.items()}, clocks

    def size(self, call: Callable[[], object]) -> int:
        """How many calls last as long as a graph should. Asked is a graph: the host takes longer for a small call."""
        replay = self.graph(call, TRIAL)
        self.lead_in(replay)
        taken = sample(replay, TRIAL, self.now) / TRIAL
        return min(MOST_CALLS, max(1, round(GRAPH / max(taken, 1e-9))))

    def graph(self, call: Callable[[], object], count: int) -> Callable[[], object]:
        """The replay of a graph of so many calls."""
        graph = torch.cuda.CUDAGraph()
        torch.cuda.synchronize()
        with torch.cuda.graph(graph, stream=torch.cuda.current_stream()):
            for _ in range(count):
                call()
        return graph.replay

    def now(self) -> float:
        """The device's time, all work before it done; from one reading to the next, as CUDA gives intervals in float32
        milliseconds: of one that lasts minutes the last place is tens of microseconds."""
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        event.synchronize()
        if self.last is not None:
            self.seconds += self.last.elapsed_time(event) / 1e3
        self.last = event
        return self.seconds

    def lead_in(self, function: Callable[[], object]) -> None:
        """One call that does not count, once nothing else runs."""
        torch.cuda.synchronize()
        function()
