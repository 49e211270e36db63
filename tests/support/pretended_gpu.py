"""A GPU that the CPU plays: everything of the GPU benchmark but the device's clock, on CPU tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from addnorm.bench.contenders import Addnorm, Contender, Eager
from addnorm.bench.devices import Cuda
from addnorm.cuda_clock import CudaClock

SMALL: dict[str, Contender] = {"addnorm": Addnorm(), "eager": Eager()}


class PretendedClock(CudaClock):
    """A graph is its calls, and time passes by a microsecond a call."""

    def __init__(self) -> None:
        super().__init__()
        self.time = 0.0
        self.captured: list[int] = []

    def graph(self, call: Callable[[], object], count: int) -> Callable[[], object]:
        self.captured.append(count)

        def replay() -> None:
            for _ in range(count):
                call()
            self.time += 1e-6 * count

        return replay

    def now(self) -> float:
        self.time += 1e-6
        return self.time

    def lead_in(self, function: Callable[[], object]) -> None:
        function()


class Uncapturable(PretendedClock):
    error = RuntimeError("operation not permitted when stream is capturing\nmore")

    def graph(self, call: Callable[[], object], count: int) -> Callable[[], object]:
        raise self.error


class Pretended(Cuda):
    """The GPU's part played by the CPU."""

    contenders = SMALL
    wrong = ""

    def __init__(self, clock: PretendedClock | None = None) -> None:
        super().__init__(clock or PretendedClock())

    def missing(self) -> str:
        return ""

    def check(self, progress: object) -> tuple[str, ...]:
        assert not self.wrong, self.wrong
        return ("some calls agree",)

    @contextmanager
    def scope(self) -> Iterator[None]:
        yield
