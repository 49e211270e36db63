"""What the benchmark found: plain data, for the terminal, for a page and for JSON."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

from ..machine import Machine
from .cases import Case

OURS = "addnorm"
FLOOR = "floor"
COPY = "copy"  # of one activation, on a GPU
FORMAT = 1


@dataclass(frozen=True)
class Measurement:
    """Median seconds per call of each contender in one case, all taken in one interleaved run.

    ``reasons`` says, by contender, why there is no time, or why its time may not be compared: its outputs disagree.
    ``backend`` is the one that took addnorm's call; ``floor`` which way of streaming was the quickest. On a GPU the
    seconds are the device's, ``host`` has those that the CPU takes to issue a call, and ``clocks`` how each was timed.
    """

    case: Case
    backend: str
    seconds: dict[str, float]
    reasons: dict[str, str]
    floor: str = ""
    host: dict[str, float] = field(default_factory=dict)
    clocks: dict[str, str] = field(default_factory=dict)

    def ratio(self, name: str) -> float | None:
        """How many times quicker addnorm is than a contender; None, and a reason, where outputs disagree."""
        return self.quotient(name, OURS)

    @property
    def to_floor(self) -> float | None:
        """addnorm's time over that of streaming the same bytes: 1 is as quick as memory allows."""
        return self.quotient(OURS, FLOOR)

    def quotient(self, over: str, under: str) -> float | None:
        if over in self.reasons or under in self.reasons or not {over, under} <= self.seconds.keys():
            return None
        return self.seconds[over] / self.seconds[under]

    def bandwidth(self, name: str = OURS) -> float | None:
        """Useful GB/s: the bytes that the case must move, over the time taken."""
        seconds = self.seconds.get(name)
        return None if seconds is None or name in self.reasons else self.case.nbytes / seconds / 1e9

    def percent_of_copy(self, name: str = OURS) -> float | None:
        """Useful bandwidth over that of streaming the same bytes, which on a GPU is a copy."""
        over = self.quotient(FLOOR, name)
        return None if over is None else 100 * over

    def to_dict(self) -> dict[str, Any]:
        result = asdict(self)
        names = [name for name in self.seconds if name not in (OURS, FLOOR, COPY)]
        result["bytes"] = self.case.nbytes
        result["gigabytes_per_second"] = {
            name: self.bandwidth(name)
            for name in self.seconds
            if name != COPY  # which moves other bytes
        }
        result["ratios"] = {name: self.ratio(name) for name in names}
        result["to_floor"] = self.to_floor
        if self.case.device == "cuda":
            result["percent_of_copy"] = {name: self.percent_of_copy(name) for name in (OURS, *names)}
        return result

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Measurement:
        stored = {name: data[name] for name in ("backend", "seconds", "reasons", "floor")}
        stored |= {name: data.get(name, {}) for name in ("host", "clocks")}
        case = Case(**data["case"])
        if not case.is_known:
            raise ValueError(f"unknown case: {data['case']}")
        check_times(*stored["seconds"].values(), *stored["host"].values())
        if not isinstance(stored["reasons"], dict):
            raise ValueError(f"reasons are not by contender: {stored['reasons']!r}")
        return cls(case=case, **stored)


@dataclass(frozen=True)
class Results:
    """A whole benchmark: all measurements, and where they were taken."""

    machine: Machine
    measurements: tuple[Measurement, ...]
    seconds: float  # that the whole benchmark took
    checks: tuple[str, ...] = ()  # what was found right on the device before the clock started

    @property
    def on_gpu(self) -> bool:
        """Whether device and host were timed apart."""
        return any(measurement.host for measurement in self.measurements)

    @property
    def groups(self) -> dict[str, list[Measurement]]:
        """The measurements by what is done, in the order in which they were made."""
        groups: dict[str, list[Measurement]] = {}
        for measurement in self.measurements:
            groups.setdefault(measurement.case.group, []).append(measurement)
        return groups

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON-ready types, the derived numbers among them."""
        return {
            "format": FORMAT,
            "machine": asdict(self.machine),
            "measurements": [measurement.to_dict() for measurement in self.measurements],
            "seconds": self.seconds,
            "checks": list(self.checks),
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Results:
        if data.get("format") != FORMAT:
            raise ValueError(f"not a benchmark result of format {FORMAT}: format is {data.get('format')!r}")
        check_times(data["seconds"])
        measurements = tuple(Measurement.from_dict(entry) for entry in data["measurements"])
        return cls(Machine(**data["machine"]), measurements, data["seconds"], tuple(data.get("checks", ())))


def check_times(*seconds: float) -> None:
    for each in seconds:
        if not (math.isfinite(each) and each > 0):
            raise ValueError(f"{each!r} is no time")
