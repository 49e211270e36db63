"""Runs the benchmark: for each case first whether outputs agree, then the clock."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

import torch

from .. import machine
from ..clock import interleaved
from ..functional import explain_dispatch
from . import inputs
from .agree import failure, objections
from .cases import Case
from .contenders import CONTENDERS, Contender, Entry, RefusalError
from .floor import candidates
from .inputs import Inputs
from .masks import seeded
from .results import FLOOR, Measurement, Results

Progress = Callable[[str, int, int], None]  # of what is under way, steps done, steps in all

ROUNDS = 25
BUDGET = 1.2  # seconds of samples per case; large cases get fewer rounds


def run(
    cases: Sequence[Case],
    progress: Progress | None = None,
    *,
    rounds: int = ROUNDS,
    contenders: Mapping[str, Contender] = CONTENDERS,
) -> Results:
    """Measures every case. A contender that refuses a case, fails in it or disagrees is left out with its reason."""
    start = time.perf_counter()
    measurements = []
    with torch.random.fork_rng(devices=[]):
        for done, case in enumerate(cases):
            if progress is not None:
                progress(str(case), done, len(cases))
            measurements.append(measure(case, contenders, rounds))
    return Results(machine.describe(), tuple(measurements), time.perf_counter() - start)


def measure(case: Case, contenders: Mapping[str, Contender], rounds: int = ROUNDS) -> Measurement:
    with torch.set_grad_enabled(case.trains):
        tensors = inputs.make(case)
        entries, reasons = prepared(case, tensors, contenders)
        broken, wrong = objections(case, tensors, entries)
        reasons |= broken | wrong
        timed = {name: entry.call for name, entry in entries.items() if name not in broken} | candidates(case)
        seconds = interleaved(timed, rounds=rounds, budget=BUDGET, warmup=0)  # all but the floor have run
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
    """Who takes the case, and why the others do not."""
    entries: dict[str, Entry] = {}
    reasons: dict[str, str] = {}
    for name, contender in contenders.items():
        try:
            seeded()
            entries[name] = contender.prepare(case, tensors)
        except RefusalError as refusal:
            reasons[name] = str(refusal)
        except Exception as error:  # a peer that breaks is a finding, not the end of the benchmark
            reasons[name] = failure(error)
    return entries, reasons
