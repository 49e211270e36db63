"""Where a benchmark runs: the contenders there, the floor and the clock. One class each, one table."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import ClassVar

import torch

from ..backends.triton import obstacle
from ..clock import interleaved
from ..cuda_clock import CudaClock
from ..progress import Progress
from . import correct
from .cases import Case
from .contenders import CONTENDERS, Contender
from .cuda_contenders import CUDA_CONTENDERS
from .floor import candidates, device_copy, same_shape_copy
from .results import COPY, FLOOR

Calls = Mapping[str, Callable[[], object]]

ROUNDS = 25
BUDGET = 1.5  # seconds of samples per case; large cases get fewer rounds
HOST_ROUNDS = 9
HOST_BUDGET = 0.3


@dataclass(frozen=True)
class Times:
    """Median seconds by name; on a GPU the host's part and the way of timing apart."""

    seconds: dict[str, float]
    host: dict[str, float] = field(default_factory=dict)
    clocks: dict[str, str] = field(default_factory=dict)


class Device(ABC):
    """What differs between a CPU and a GPU, for the benchmark."""

    name: ClassVar[str]
    contenders: ClassVar[Mapping[str, Contender]]

    @abstractmethod
    def missing(self) -> str:
        """Why nothing can be measured here, or nothing."""

    def check(self, progress: Progress) -> tuple[str, ...]:
        """What was found right before anything is timed; raises AssertionError where something is wrong."""
        return ()

    @abstractmethod
    def floors(self, case: Case) -> Calls:
        """Ways to move the bytes of a case; those whose names begin with `FLOOR` compete."""

    @contextmanager
    def scope(self) -> Iterator[None]:
        """What contenders are prepared and timed in."""
        yield

    @abstractmethod
    def times(self, calls: Calls, rounds: int) -> Times:
        """How long the calls take, interleaved."""


class Cpu(Device):
    """The CPU, by the wall clock."""

    name = "cpu"
    contenders = CONTENDERS

    def missing(self) -> str:
        return ""

    def floors(self, case: Case) -> Calls:
        return candidates(case)

    def times(self, calls: Calls, rounds: int) -> Times:
        return Times(interleaved(dict(calls), rounds=rounds, budget=BUDGET))


class Cuda(Device):
    """A CUDA device: its own time, by its clock, and the host's, which is that of issuing calls, nothing waited for."""

    name = "cuda"
    contenders = CUDA_CONTENDERS

    def __init__(self, clock: CudaClock | None = None) -> None:
        self.clock = CudaClock() if clock is None else clock

    def missing(self) -> str:
        if torch.version.cuda is None:
            return f"torch {torch.__version__} is built without CUDA"
        if not torch.cuda.is_available():
            return f"torch {torch.__version__} sees no CUDA device"
        reason = obstacle(self.name, torch.cuda.current_device())
        return f"the kernels do not run there: {reason}" if reason else ""

    def check(self, progress: Progress) -> tuple[str, ...]:
        return correct.check(self.name, progress=progress)

    def floors(self, case: Case) -> Calls:
        return {f"{FLOOR}:{COPY}": device_copy(case), COPY: same_shape_copy(case)}

    @contextmanager
    def scope(self) -> Iterator[None]:
        """A stream of its own, as capture wants it: a backward runs where its forward did."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            yield
        torch.cuda.current_stream().wait_stream(stream)

    def times(self, calls: Calls, rounds: int) -> Times:
        rounds_of_host = min(rounds, HOST_ROUNDS)
        host = interleaved(dict(calls), rounds=rounds_of_host, budget=HOST_BUDGET, lead_in=self.clock.lead_in)
        seconds, clocks = self.clock.times(calls, rounds=rounds, budget=BUDGET)
        return Times(seconds, host, clocks)


DEVICES: dict[str, Device] = {device.name: device for device in (Cpu(), Cuda())}
