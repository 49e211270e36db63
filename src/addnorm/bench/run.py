"""Runs the benchmark: for each case first whether outputs agree, then the clock."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import torch

from .. import machine
from ..functional import explain_dispatch
from ..progress import Progress, silent
from . import inputs
from .agree import failure, objections
from .cases import Case
from .contenders import Contender, Entry, RefusalError
from .devices import DEVICES, ROUNDS, Device
from .inputs import Inputs
from .masks import seeded
from .results import FLOOR, Measurement, Results


def run(
    cases: Sequence[Case],
    progress: Progress = silent,
    *,
    rounds: int = ROUNDS,
    device: Device = DEVICES["cpu"],
    contenders: Mapping[str, Contender] | None = None,
) -> Results:
    """Measures every case. A contender that refuses a case, fails in it or disagrees is left out with its reason.

    Raises:
        AssertionError: where the device computes something wrong; nothing is timed then.
    """
    start = time.perf_counter()
    measurements = []
    contenders = device.contenders if contenders is None else contenders
    checks = device.check(progress)
    with torch.random.fork_rng(devices=range(torch.cuda.device_count()) if device.name == "cuda" else []):
        for done, case in enumerate(cases):
            progress(str(case), done, len(cases))
            measurements.append(measure(case, contenders, rounds, device))
    return Results(machine.describe(), tuple(measurements), time.perf_counter() - start, checks)


def measure(
    case: Case, contenders: Mapping[str, Contender], rounds: int = ROUNDS, device: Device = DEVICES["cpu"]
) -> Measurement:
    with torch.set_grad_enabled(case.trains), device.scope():
        tensors = inputs.make(case)
        entries, reasons = prepared(case, tensors, contenders)
        broken, wrong = objections(case, tensors, entries)
        reasons |= broken | wrong
        timed = {name: entry.call for name, entry in entries.items() if name not in broken} | dict(device.floors(case))
        times = device.times(timed, rounds)
        seconds = dict(times.seconds)
        floors = {name: seconds.pop(name) for name in list(seconds) if name.startswith(FLOOR)}
        quickest = min(floors, key=lambda name: floors[name])
        return Measurement(
            case=case,
            backend=explain_dispatch(tensors.x, tensors.residual).chosen,
            seconds=seconds | {FLOOR: floors[quickest]},
            reasons=reasons,
            floor=quickest.removeprefix(f"{FLOOR}:"),
            host={name: taken for name, taken in times.host.items() if name in entries},
            clocks={name: clock for name, clock in times.clocks.items() if name in entries},
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
