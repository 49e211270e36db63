"""Runs the benchmark: for each case first whether outputs agree, then the clock."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping

import torch

from ..functional import explain_dispatch
from . import inputs, machine
from .agree import objections
from .cases import Case
from .clock import interleaved
from .contenders import CONTENDERS, Contender, Entry, RefusalError
from .floor import candidates
from .inputs import Inputs
from .masks import seeded
from .results import FLOOR, Measurement, Results

Progress = Callable[[Case], object]  # called before each case

ROUNDS = 25
BUDGET = 1.2  # seconds of samples per case; large cases get fewer rounds


def run(
    cases: Iterable[Case],
    progress: Progress | None = None,
    *,
    rounds: int = ROUNDS,
    contenders: Mapping[str, Contender] = CONTENDERS,
) -> Results:
    """Measures every case. A contender that refuses a case, fails in it or disagrees is left out with its reason."""
    start = time.perf_counter()
    measurements = []
    with torch.random.fork_rng(devices=[]):
        for case in cases:
            if progress is not None:
                progress(case)
            measurements.append(measure(case, contenders, rounds))
    return Results(machine.describe(), tuple(measurements), time.perf_counter() - start)


def measure(case: Case, contenders: Mapping[str, Contender], rounds: int = ROUNDS) -> Measurement:
    with torch.set_grad_enabled(case.trains):
        tensors = inputs.make(case)
        entries, reasons = prepared(case, tensors, contenders)
        reasons |= objections(case, tensors, entries)
        timed = {name: entry.call for name, entry in entries.items()} | candidates(case)
        seconds = interleaved(timed, rounds=rounds, budget=BUDGET, warmup=1)
        floors = {name: seconds.pop(name) for name in list(seconds) if name.startswith(FLOOR)}
        quickest = min(floors, key=lambda name: floors[name])
        return Measurement(
            case=case,
            backend=explain_dispatch(tensors.x, tensors.residual).chosen,
            seconds=seconds | {FLOOR: floors[quickest]},
            reasons=reasons,
            floor=quickest.removeprefix(f"{FLOOR}:"),
        )


def prepared(
    case: Case, tensors: Inputs, contenders: Mapping[str, Contender]
) -> tuple[dict[str, Entry], dict[str, str]]:
    """Who takes the case, and why the others do not. Each is called once: a compiler's failure shows only then."""
    entries: dict[str, Entry] = {}
    reasons: dict[str, str] = {}
    for name, contender in contenders.items():
        try:
            seeded()
            entry = contender.prepare(case, tensors)
            if case.mode != "backward":  # the mask of a backward was drawn in `prepare`
                entry.call()
            entries[name] = entry
        except RefusalError as refusal:
            reasons[name] = str(refusal)
        except Exception as error:  # a peer that breaks is a finding, not the end of the benchmark
            first_line = (str(error).strip() or "no message").splitlines()[0]
            reasons[name] = f"failed: {type(error).__name__}: {first_line}"
    return entries, reasons
