"""Whether a contender computes what it is timed for: no ratio is given for outputs that disagree.

Every result is compared with the reference in float64. Its largest error may be twice that of torch's own
operations in the same dtype, plus `FEW` roundings of the largest value; torch's own operations are held to the
roundings that they take. With dropout the reference is given the mask that the contender drew (see `masks`): y
and all gradients must follow from that one mask, and its rate must be p.

Of a large case, rows spread over the whole are compared. Rows are independent, and for the check alone the incoming
gradient of all other rows is zero, so that the gradients of the parameters are theirs too.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from .. import reference
from ..call import describe
from ..words import count, first_line
from .cases import BACKWARD, EPS, Case
from .contenders import Eager, Entry
from .inputs import Inputs
from .masks import own_mask, seeded, seen_mask, unfair
from .results import OURS

SLACK = 2.0  # a contender may err twice as much as torch's own operations
FEW = 4.0  # roundings of the largest value
COMPARED = 1 << 20  # elements, as float64 with gradients is slow
YARDSTICK = Eager.name
COLUMN_SUMS = ("dweight", "dbias")


@dataclass(frozen=True)
class Deviation:
    """The largest error of a result, and the largest value that it should have."""

    error: float
    scale: float


def objections(case: Case, inputs: Inputs, entries: Mapping[str, Entry]) -> tuple[dict[str, str], dict[str, str]]:
    """Who fails when called, and whose outputs are not to be trusted, and why; those that agree are in neither.

    Without torch's own operations among the entries, all are held to the roundings that those take.
    """
    rows = compared_rows(case)
    found: dict[str, dict[str, Deviation]] = {}
    broken: dict[str, str] = {}
    wrong: dict[str, str] = {}
    with only(rows, inputs):
        wants: dict[str, Tensor] | None = None
        for name, entry in entries.items():
            seeded()
            try:
                results = entry.read(entry.call())
            except Exception as error:  # what compiles on its first call fails there
                broken[name] = failure(error)
                continue
            wrong[name] = malformed(case, inputs, results)
            if wrong[name]:
                continue
            got = dict(zip(result_names(case, inputs), results, strict=True))
            keep = None
            if case.dropout_p:
                keep = own_mask(case, inputs, rows) if name == OURS else seen_mask(case, inputs, got, rows)
                wrong[name] = unfair(case, inputs, keep, rows)
            if wants is None or keep is not None:
                wants = exact(case, inputs, rows, keep)
            found[name] = {result: deviation(got[result], wants[result], rows) for result in got}
    if YARDSTICK in found:
        wrong[YARDSTICK] = wrong[YARDSTICK] or complaint(case, found[YARDSTICK], None)
    yardstick = None if wrong.get(YARDSTICK) else found.get(YARDSTICK)
    for name, deviations in found.items():
        wrong[name] = wrong[name] or complaint(case, deviations, yardstick)
    return broken, {name: reason for name, reason in wrong.items() if reason}


def failure(error: Exception) -> str:
    """An error's kind and first line."""
    return f"failed: {type(error).__name__}: {first_line(error)}"


def result_names(case: Case, inputs: Inputs) -> list[str]:
    """What a contender returns for a case, in order."""
    forward = [] if case.mode == BACKWARD else ["y", "z"] if case.stream else ["y"]
    return forward + [f"d{name}" for name in inputs.leaves if case.trains]


def compared_rows(case: Case) -> Tensor:
    """All rows of a small case, else rows from the first to the last."""
    count = min(case.rows, max(2, COMPARED // case.d))
    return torch.linspace(0, case.rows - 1, count, dtype=torch.float64).round().long().to(case.device)


@contextmanager
def only(rows: Tensor, inputs: Inputs) -> Iterator[None]:
    """Zeroes the incoming gradients of the other rows."""
    kept = [grad.clone() for grad in inputs.incoming]
    for grad, values in zip(inputs.incoming, kept, strict=True):
        grad.zero_()[rows] = values[rows]
    try:
        yield
    finally:
        for grad, values in zip(inputs.incoming, kept, strict=True):
            grad.copy_(values)


def exact(case: Case, inputs: Inputs, rows: Tensor, keep: Tensor | None) -> dict[str, Tensor]:
    """Results and gradients of some rows, by the reference, in float64; `keep` is the mask that was drawn."""
    with torch.set_grad_enabled(case.trains):
        leaves = {
            name: (t.detach()[rows] if t.dim() > 1 else t.detach()).double().requires_grad_(case.trains)
            for name, t in inputs.leaves.items()
        }
        x = leaves["x"] if keep is None else leaves["x"] * (keep / (1 - case.dropout_p))
        call = describe(x, leaves["residual"], leaves["weight"], leaves.get("bias"), norm=case.norm, eps=EPS)
        y, z, _ = reference.forward(call)
        results = {"y": y.detach(), "z": z.detach()}
        if case.trains:
            incoming = [grad[rows].double() for grad in inputs.incoming]
            grads = torch.autograd.grad((y, z)[: len(incoming)], tuple(leaves.values()), incoming)
            results |= {f"d{name}": grad for name, grad in zip(leaves, grads, strict=True)}
    return results


def deviation(got: Tensor, want: Tensor, rows: Tensor) -> Deviation:
    got = got.detach() if got.dim() == 1 else got.detach()[rows]
    error = (got.double() - want).abs().max().item()
    return Deviation(math.inf if math.isnan(error) else error, want.abs().max().item())


def complaint(case: Case, found: Mapping[str, Deviation], yardstick: Mapping[str, Deviation] | None) -> str:
    """What disagrees, or nothing."""
    eps = torch.finfo(case.torch_dtype).eps
    for name, deviation in found.items():
        rounding = eps * deviation.scale
        if yardstick is None:
            # A few in a row; down a column a random walk of as many as there are rows.
            allowed = rounding * (FEW + math.sqrt(case.rows) * (name in COLUMN_SUMS))
        else:
            allowed = SLACK * yardstick[name].error + FEW * rounding
        if not deviation.error <= allowed:
            return f"{name} is off by {deviation.error:.3g}, where rounding explains {allowed:.3g}"
    return ""


def malformed(case: Case, inputs: Inputs, results: Sequence[Tensor]) -> str:
    """What is wrong with the number, dtype or shape of the results, or nothing."""
    names = result_names(case, inputs)
    if len(results) != len(names):
        return f"gives {count(len(results), 'result')} instead of {len(names)}"
    for name, result in zip(names, results, strict=True):
        shape = (case.d,) if name in COLUMN_SUMS else (case.rows, case.d)
        if tuple(result.shape) != shape or result.dtype != case.torch_dtype:
            return f"{name} is {result.dtype} {tuple(result.shape)} instead of {case.torch_dtype} {shape}"
    return ""
