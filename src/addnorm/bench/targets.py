"""What the GPU kernels aim at, most of it in percent of a copy of the same bytes made in the same run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from .cases import BACKWARD, INFERENCE, Case
from .cuda_cases import DECODE
from .results import COPY, OURS, Measurement, Results

MIB = 1 << 20


@dataclass(frozen=True)
class Scale:
    """What is held against a target, and whether less of it is better."""

    of: Callable[[Measurement], float | None]
    less: bool
    unit: str


def host(measurement: Measurement) -> float | None:
    """Microseconds to issue a call; None where it was not made."""
    return 1e6 * measurement.host[OURS] if OURS in measurement.host else None


PERCENT = Scale(Measurement.percent_of_copy, False, " %")
COPIES = Scale(lambda measurement: measurement.quotient(OURS, COPY), True, "x a same-shape copy")
HOST = Scale(host, True, " µs")


@dataclass(frozen=True)
class Target:
    """A regime, the cases in it, and what each of them should reach."""

    regime: str
    holds: Callable[[Case], bool]
    goal: float
    scale: Scale = PERCENT

    def met(self, value: float) -> bool:
        return value <= self.goal if self.scale.less else value >= self.goal


@dataclass(frozen=True)
class Verdict:
    """A target beside the worst case of its regime; None where none was measured. A case in which addnorm failed or
    disagreed is the worst, with None as its value."""

    target: Target
    worst: float | None
    case: Case | None
    cases: int

    @property
    def met(self) -> bool | None:
        if self.case is None:
            return None
        return self.worst is not None and self.target.met(self.worst)


def forward(case: Case, low: int, high: int) -> bool:
    plain = case.mode == INFERENCE and not case.dropout_p and case.dtype == "bf16"
    return plain and low <= case.d <= high and case.nbytes >= 256 * MIB and case.rows > DECODE


def backward(case: Case, low: int, high: int) -> bool:
    plain = case.mode == BACKWARD and case.norm == "layer" and case.dtype == "bf16"
    return plain and low <= case.d <= high and case.nbytes >= 512 * MIB and case.rows > 2048


TARGETS = (
    Target("forward, pre-norm, N 1k-16k", lambda c: forward(c, 1024, 16384) and c.stream, 98),
    Target("forward, post-norm, N 1k-16k", lambda c: forward(c, 1024, 16384) and not c.stream, 100),
    Target("forward with dropout, N 1k-16k",
           lambda c: c.mode == INFERENCE and c.dropout_p > 0 and 1024 <= c.d <= 16384, 96),
    Target("forward, N <= 512", lambda c: forward(c, 1, 512), 92),
    Target("forward, N 32k-128k", lambda c: forward(c, 32768, 131072), 93),
    Target("backward, LayerNorm, N 1k-8k", lambda c: backward(c, 1024, 8192), 93),
    Target("backward, LayerNorm, N 12k-16k", lambda c: backward(c, 12288, 16384), 88),
    Target("backward, LayerNorm, N 32k-64k", lambda c: backward(c, 32768, 65536), 80),
    Target("backward, <= 2k rows", lambda c: c.mode == BACKWARD and c.norm == "layer" and c.rows <= 2048, 65),
    Target("decode, <= 64 rows, N <= 8k, in a CUDA graph",
           lambda c: c.mode == INFERENCE and c.rows <= DECODE and c.d <= 8192, 1.3, COPIES),
    Target("host, a forward without dropout", lambda c: c.mode == INFERENCE and not c.dropout_p, 8, HOST),
)  # fmt: skip


def verdicts(results: Results) -> list[Verdict]:
    """Every target beside what was measured."""
    found = []
    for target in TARGETS:
        values, wrong = {}, []
        for measurement in results.measurements:
            if target.holds(measurement.case):
                value = target.scale.of(measurement)
                if OURS in measurement.reasons:
                    wrong.append(measurement.case)
                elif value is not None:
                    values[measurement.case] = value
        order = wrong + sorted(values, key=lambda case: values[case], reverse=target.scale.less)
        worst = order[0] if order else None
        found.append(Verdict(target, None if worst is None else values.get(worst), worst, len(order)))
    return found
