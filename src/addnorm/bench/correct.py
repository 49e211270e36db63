"""Whether the kernels are right on a device, before anything is timed there.

Every option, dtype and row of the launch tables, outputs and gradients, in memory that is full of NaN, against the
reference in float64. An error may be twice that of the reference's operations in the call's own dtypes, plus `FEW`
roundings of the largest value. Then what must hold to the bit: the mask, the same call twice, a row among others.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.utils.deterministic
from torch import Tensor

from .. import rng
from ..call import dropout_threshold
from ..functional import add_norm_stream
from ..progress import Progress, silent
from .agree import FEW, SLACK
from .cases import DTYPES

BACKEND = "triton"
SEED = 1234567
# One width at least for each row of the launch tables, and beside each an odd one.
WIDTHS = (1, 7, 64, 100, 128, 256, 257, 768, 1024, 1031, 2048, 4096, 5120, 7168, 8192, 9001, 12288, 16384, 20000, 40000)
WIDEST = 131072
SETTINGS: Any = torch.utils.deterministic


@dataclass(frozen=True)
class Problem:
    """A call, described. `dtypes` are those of x, the residual and the parameters."""

    rows: int
    d: int
    dtypes: tuple[str, ...] = ("bf16", "bf16", "bf16")
    norm: str = "layer"
    extras: tuple[str, ...] = ()  # which of branch_bias, branch_scale and row_scale there are
    options: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        options = " ".join([*self.extras, *(f"{k}={v}" for k, v in self.options.items())])
        return f"{self.norm} {self.rows}x{self.d} {'/'.join(self.dtypes)} {options}".rstrip()


EXTRAS = ("branch_bias", "branch_scale", "row_scale")
EVERYTHING: dict[str, Any] = {"dropout_p": 0.3, "residual_scale": 1.5, "weight_offset": 1.0, "eps": 1e-3}


def problems(widths: tuple[int, ...] = WIDTHS, rows: int = 37) -> Iterator[Problem]:
    """Every width plain, with dropout and with everything; then each option and each pair of dtypes at one width."""
    for d in widths:
        for norm in ("layer", "rms"):
            for name in DTYPES:
                yield Problem(rows, d, (name,) * 3, norm)
            yield Problem(rows, d, norm=norm, options={"dropout_p": 0.1})
            yield Problem(rows, d, norm=norm, extras=EXTRAS, options=EVERYTHING)
    d = widths[len(widths) // 2]
    for norm in ("layer", "rms"):
        for name, value in (*EVERYTHING.items(), ("out_dtype", torch.float32), ("stream_dtype", torch.float32)):
            yield Problem(rows, d, norm=norm, options={name: value})
        for extra in EXTRAS:
            yield Problem(rows, d, norm=norm, extras=(extra,))
    for x in DTYPES:
        for residual in DTYPES:
            yield Problem(rows, d, (x, residual, "fp32"), extras=EXTRAS, options={"dropout_p": 0.2})


def check(device: str, widths: tuple[int, ...] = (*WIDTHS, WIDEST), progress: Progress = silent) -> tuple[str, ...]:
    """What was found right, in a few words each.

    Raises:
        AssertionError: naming the call and the result that is wrong.
    """
    found = list(problems(widths))
    for done, problem in enumerate(found):
        progress(f"correctness: {problem}", done, len(found))
        agrees(problem, device)
    some = [Problem(37, d, (name,) * 3, options={"dropout_p": 0.5}) for d in widths for name in ("fp32", "bf16")]
    for problem in some:
        repeats(problem, device)
        mask_is_published(problem, device)
        rows_are_independent(problem, device)
    return (
        f"{len(found)} calls agree with float64, outputs and gradients, in poisoned memory",
        f"{len(some)} calls give the same bits again, and the published mask",
        f"{len(some)} calls give a row's bits whatever rows are beside it",
    )


def agrees(problem: Problem, device: str) -> None:
    arguments, arriving = tensors(problem, device)
    want = results(widened(arguments), arriving, "eager")
    yardstick = results(arguments, arriving, "eager")
    with poisoned():
        got = results(arguments, arriving, BACKEND)
    for name, value in want.items():
        have = got[name]
        assert have.dtype == yardstick[name].dtype, f"{problem}: {name} is {have.dtype}, not {yardstick[name].dtype}"
        error, theirs = ((t.double() - value).abs().max().item() for t in (have, yardstick[name]))
        rounding = torch.finfo(have.dtype).eps * value.abs().max().item()
        allowed = SLACK * theirs + FEW * rounding
        assert error <= allowed, f"{problem}: {name} is off by {error:.3g}, where rounding explains {allowed:.3g}"


def repeats(problem: Problem, device: str) -> None:
    arguments, arriving = tensors(problem, device)
    first, again = (results(arguments, arriving, BACKEND) for _ in range(2))
    for name, value in first.items():
        assert torch.equal(value, again[name]), f"{problem}: {name} has other bits the second time"


def mask_is_published(problem: Problem, device: str) -> None:
    p = problem.options["dropout_p"]
    x = torch.ones(problem.rows, problem.d, dtype=DTYPES[problem.dtypes[0]], device=device, requires_grad=True)
    _, stream = add_norm_stream(x, dropout_p=p, seed=SEED, backend=BACKEND)
    (grad,) = torch.autograd.grad(stream, x, torch.ones_like(stream))
    want = rng.mask(torch.tensor(SEED), problem.rows, problem.d, dropout_threshold(p))
    for what, seen in (("forward", stream), ("backward", grad)):
        assert torch.equal((seen != 0).cpu(), want), f"{problem}: the {what} drops other elements than it should"


def rows_are_independent(problem: Problem, device: str) -> None:
    arguments, _ = tensors(problem, device)
    arguments = {name: value for name, value in arguments.items() if name not in ("dropout_p", "seed")}
    whole = add_norm_stream(**arguments, backend=BACKEND)
    for rows in (slice(0, 1), slice(5, 8), slice(20, 37)):
        part = {name: value[rows] if name in ("x", "residual") else value for name, value in arguments.items()}
        for want, got in zip(whole, add_norm_stream(**part, backend=BACKEND), strict=True):
            assert torch.equal(got, want[rows]), f"{problem}: rows {rows.start} to {rows.stop} alone have other bits"


def tensors(problem: Problem, device: str) -> tuple[dict[str, Any], list[Tensor]]:
    """Arguments by name, and the gradients that arrive."""
    source = torch.Generator().manual_seed(7)

    def normal(*shape: int, dtype: str, mean: float = 0.0, scale: float = 1.0) -> Tensor:
        values = torch.randn(shape, generator=source) * scale + mean
        return values.to(device, DTYPES[dtype]).requires_grad_()

    rows, d, (x, residual, parameters) = problem.rows, problem.d, problem.dtypes
    arguments: dict[str, Any] = {
        "x": normal(rows, d, dtype=x, mean=1.0),
        "residual": normal(rows, d, dtype=residual),
        "weight": normal(d, dtype=parameters, mean=1.0, scale=0.3),
        "norm": problem.norm,
        **problem.options,
    }
    if problem.norm == "layer":
        arguments["bias"] = normal(d, dtype=parameters)
    scales = {"branch_bias": (d,), "branch_scale": (d,), "row_scale": (rows,)}
    arguments |= {name: normal(*scales[name], dtype=parameters, mean=0.5, scale=0.2) for name in problem.extras}
    if "dropout_p" in arguments:
        arguments["seed"] = SEED
    stored = torch.promote_types(DTYPES[x], DTYPES[residual])
    kinds = (arguments.get("out_dtype", stored), arguments.get("stream_dtype", stored))
    arriving = [torch.randn(rows, d, generator=source).to(device, kind) for kind in kinds]
    return arguments, arriving


def widened(arguments: dict[str, Any]) -> dict[str, Any]:
    """The same call in float64."""
    wide = {
        name: value.detach().double().requires_grad_() if isinstance(value, Tensor) else value
        for name, value in arguments.items()
    }
    return wide | {name: torch.float64 for name in ("out_dtype", "stream_dtype") if name in arguments}


def results(arguments: dict[str, Any], arriving: list[Tensor], backend: str) -> dict[str, Tensor]:
    """y, the stream and all gradients."""
    leaves = {name: value for name, value in arguments.items() if isinstance(value, Tensor)}
    both = add_norm_stream(**arguments, backend=backend)
    incoming = [grad.to(result.dtype) for grad, result in zip(arriving, both, strict=True)]
    grads = torch.autograd.grad(both, tuple(leaves.values()), incoming)
    named = dict(zip((f"the gradient of {name}" for name in leaves), grads, strict=True))
    return {"y": both[0].detach(), "the stream": both[1].detach(), **named}


@contextmanager
def poisoned() -> Iterator[None]:
    """Memory that is not written is full of NaN."""
    before = torch.are_deterministic_algorithms_enabled(), SETTINGS.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    SETTINGS.fill_uninitialized_memory = True
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        SETTINGS.fill_uninitialized_memory = before[1]
