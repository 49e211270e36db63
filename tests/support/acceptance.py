"""What every backend must do, as plain functions that take `backend=` and raise AssertionError.

The tests call each of them for every backend and for the plain call; test_mutants.py for backends that are
wrong. `python -m tests.support.acceptance NAME...` runs them all in a process of its own, for the instruction
sets that are chosen at load.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor

from addnorm import add_norm, add_norm_stream, rng
from addnorm.backends import BACKENDS, select
from addnorm.call import Call, Gradient, describe

from . import precision
from .calls import fresh, run
from .cases import BF16, CASES, DTYPES, EVERYTHING, F16, F32, F64, NORMS, Case, build, options
from .oracle import OPERANDS, Exact, Problem, as_written, exact
from .poison import poisoned_memory
from .tolerance import check, same_bits

Check = Callable[[str | None], None]


def results_agree(backend: str | None) -> None:
    """Outputs and gradients of every case, computed in poisoned memory, against float64 and against torch's own."""
    for case in CASES:
        problem, want, composite = solved(case)
        with poisoned_memory():
            got = run(problem, backend)
        with labelled(case):
            check(problem, want, got, composite)


@cache
def solved(case: Case) -> tuple[Problem, Exact, dict[str, Tensor]]:
    problem = build(case)
    return problem, exact(problem), as_written(problem)


def outputs_are_written_whole(backend: str | None) -> None:
    """`out` and `stream_out`, full of NaN and of any strides, get the bits of the call without them."""
    for case in (*CASES[::3], *ALONE):
        if case.layout in ("expanded", "windows"):
            continue
        problem = replace(build(case), dy=None, ds=None)
        want = run(problem, backend)
        y = torch.full_like(problem.x, torch.nan, dtype=want["y"].dtype)
        z = torch.full_like(want["stream"].mT if want["stream"].dim() > 1 else want["stream"], torch.nan)
        z = z.mT if z.dim() > 1 else z
        with poisoned_memory():
            got = add_norm_stream(**problem.arguments, out=y, stream_out=z, backend=backend)
            only_y = add_norm(**problem.arguments, backend=backend)
        with labelled(case):
            assert got[0] is y
            assert got[1] is z
            same_bits("out", y, want["y"])
            same_bits("stream_out", z, want["stream"])
            if problem.stream_dtype == problem.stored_dtype:  # else a kernel may add up in another order
                same_bits("y alone", only_y, want["y"])


ALONE = [
    Case(shape=(3, d), residual=None, x=dtype, norm=norm)
    for d in (1, 17, 64, 257, 4100) for dtype in (F32, BF16) for norm in NORMS
]  # fmt: skip


def outputs_may_be_inputs(backend: str | None) -> None:
    """In place, in x or in the residual, y and stream either way round."""
    for case in CASES[:60:2]:
        problem = replace(build(case), dy=None, ds=None)
        want = run(problem, backend)
        places = [name for name in ("x", "residual") if name in problem.arguments]
        for first, second in zip(places, reversed(places), strict=True):
            arguments = {k: v.clone() if k in places else v for k, v in problem.arguments.items()}
            add_norm(**{**arguments, "out": arguments[first]}, backend=backend)
            with labelled(case):
                same_bits(f"y in {first}", arguments[first], want["y"])
            if first != second:
                arguments = {k: v.clone() if k in places else v for k, v in problem.arguments.items()}
                places_given = {"out": arguments[first], "stream_out": arguments[second]}
                add_norm_stream(**arguments, **places_given, backend=backend)
                with labelled(case):
                    same_bits(f"y in {first}", arguments[first], want["y"])
                    same_bits(f"stream in {second}", arguments[second], want["stream"])


def only_asked_gradients(backend: str | None) -> None:
    """Each gradient asked for alone has the value that it has among all; the others are not there."""
    for norm in NORMS:
        problem = build(replace(EVERYTHING, norm=norm))
        want = exact(problem)
        for name in OPERANDS:
            arguments = fresh(problem, requires_grad=False)
            arguments[name].requires_grad_()
            with poisoned_memory():
                y, z = add_norm_stream(**arguments, backend=backend)
                torch.autograd.backward([y, z], [problem.dy, problem.ds])
            got = {k: t.grad for k, t in arguments.items() if isinstance(t, Tensor) and t.grad is not None}
            assert set(got) == {name}
            check(problem, want, got, as_written(problem))


def unasked_gradients_are_not_made(backend: str | None) -> None:
    """A backend's backward gives None where a gradient is not needed."""
    implementation = BACKENDS[backend] if backend else select(describe(torch.ones(1, 2)))
    problem = build(EVERYTHING)
    call = describe(**problem.arguments)
    _, z, stats = implementation.forward(call, keep_stream=True, keep_stats=True)
    assert z is not None
    assert stats is not None
    shared = {f.name for f in fields(Call)} & {f.name for f in fields(Gradient)}
    given = {name: getattr(call, name) for name in shared}
    given.update(dy=problem.dy, ds=problem.ds, z=z, stats=stats, x_dtype=F32, residual_dtype=F32, bias_dtype=F32)
    for i, name in enumerate(OPERANDS):
        needs = [j == i for j in range(len(OPERANDS))]
        grads = implementation.backward(Gradient(**given, needs=needs))
        made = {operand for operand, grad in grads.items() if grad is not None}
        assert made == {name}, f"asked for {name}, got {sorted(made)}"


def mask_is_the_published_one(backend: str | None) -> None:
    """Forward and backward drop exactly where `rng.mask` says, for any dtype, width, row count and seed."""
    for rows, d in ((1, 8), (1, 100), (2, 33), (3, 64), (4, 7), (5, 130), (9, 16), (64, 1031)):
        for seed in (0, 2**40 + rows, -1):
            p = 0.5 if rows != 5 else 0.1
            want = rng.mask(seed, rows, d, min(round(65536 * p), 65535))
            for dtype in DTYPES:
                x = torch.ones(rows, d, dtype=dtype, requires_grad=True)
                _, z = add_norm_stream(x, dropout_p=p, seed=seed, backend=backend)
                z.backward(torch.ones_like(z))
                assert x.grad is not None
                assert torch.equal(z != 0, want), f"forward {dtype} {rows}x{d} seed {seed}"
                assert torch.equal(x.grad != 0, want), f"backward {dtype} {rows}x{d} seed {seed}"


def rows_are_independent(backend: str | None) -> None:
    """A row's y, stream and dx have the same bits alone, among others, and at any place (without dropout)."""
    for dtype in DTYPES:
        for d in (1, 17, 64, 257, 770, 4100):
            for norm in NORMS:
                given = options(residual_scale=1.25)
                problem = build(Case(shape=(37, d), x=dtype, residual=dtype, norm=norm, mean=3.0, options=given))
                want = run(problem, backend)
                for rows in (slice(0, 1), slice(5, 8), slice(20, 37)):
                    part = {k: v[rows] if k in ("x", "residual") else v for k, v in problem.arguments.items()}
                    assert problem.dy is not None
                    assert problem.ds is not None
                    got = run(Problem(part, problem.dy[rows], problem.ds[rows]), backend)
                    for name in ("y", "stream", "x", "residual"):
                        same_bits(f"{name} of rows {rows} of {norm} {dtype} {d}", got[name], want[name][rows])


def threads_do_not_matter(backend: str | None) -> None:
    """The same bits, parameter gradients too, from run to run and with 1, 2 and 3 threads."""
    before = torch.get_num_threads()
    problems = [build(case) for case in BIT_CASES]
    try:
        wanted = [run(problem, backend) for problem in problems]
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            for case, problem, want in zip(BIT_CASES, problems, wanted, strict=True):
                got = run(problem, backend)
                with labelled(case):
                    for name, result in got.items():
                        same_bits(f"{name} with {threads} threads", result, want[name])
    finally:
        torch.set_num_threads(before)


BIT_CASES = [
    *[replace(EVERYTHING, shape=(150, d), row_scale=(150,), x=t, residual=t) for d in (64, 769) for t in DTYPES],
    *[Case(shape=(1100, 133), norm=norm, x=t) for norm in NORMS for t in (F32, BF16)],
    Case(shape=(2, 40000)),
]


def specials_stay_in_their_row(backend: str | None) -> None:
    """NaN and inf poison their own row's y, stream and dx, and no other; a dropped NaN is still NaN."""
    for norm in NORMS:
        for value in (torch.nan, torch.inf, -torch.inf):
            for dtype in (F32, BF16, F16, F64):
                problem = build(Case(shape=(9, 70), norm=norm, x=dtype, residual=dtype))
                want = run(problem, backend)
                hurt = {k: v.clone() if isinstance(v, Tensor) else v for k, v in problem.arguments.items()}
                hurt["x"][4, 33] = value
                got = run(replace(problem, arguments=hurt), backend)
                for name in ("y", "stream", "x"):
                    clean = [i for i in range(9) if i != 4]
                    same_bits(f"{name} beside a row with {value}", got[name][clean], want[name][clean])
                assert got["y"][4].isnan().any(), f"{value} gives no NaN in y's row"
                assert not got["stream"][4, 33].isfinite()
                assert got["stream"][4, :33].isfinite().all()
    _, stream = add_norm_stream(torch.full((64,), torch.nan), dropout_p=0.5, seed=1, backend=backend)
    assert stream.isnan().all(), "a dropped NaN became a number"
    for bits in (0x7FFFFFFF, -1, 0x7F800001):  # payloads that rounding to bfloat16 would carry away
        scale = torch.tensor(bits, dtype=torch.int32).view(F32)
        scales: list[dict[str, Any]] = [
            {"branch_scale": scale}, {"branch_scale": scale.repeat(64)}, {"row_scale": scale.repeat(3)}
        ]  # fmt: skip
        for given in scales:
            x = torch.ones(3, 64, dtype=BF16, requires_grad=True)
            y, stream = add_norm_stream(x, x.detach(), **given, backend=backend)
            (dx,) = torch.autograd.grad([y, stream], x, [torch.ones_like(y)] * 2)
            assert all(t.isnan().all() for t in (y, stream, dx)), f"a NaN of {bits & 0xFFFFFFFF:x} became a number"


def dropout_off_draws_nothing(backend: str | None) -> None:
    """p = 0 and training=False: torch's generator stays as it is, and the bits are those of a call without dropout."""
    problem = build(Case())
    plain = run(problem, backend)
    for given in ({"dropout_p": 0.0}, {"dropout_p": 0.9, "training": False}):
        state = torch.get_rng_state()
        got = run(replace(problem, arguments={**problem.arguments, **given}), backend)
        assert torch.equal(torch.get_rng_state(), state), f"{given} drew from torch's generator"
        for name, result in got.items():
            same_bits(f"{name} with {given}", result, plain[name])


def seeds_come_from_torch(backend: str | None) -> None:
    """Without a seed, one is drawn from torch's generator: the same after the same manual_seed, another each call."""
    x = torch.ones(8, 64)

    def stream() -> Tensor:
        return add_norm_stream(x, dropout_p=0.5, backend=backend)[1]

    torch.manual_seed(5)
    seed = int(torch.randint(2**63 - 1, ()))
    torch.manual_seed(5)
    first, second = stream(), stream()
    torch.manual_seed(5)
    same_bits("the stream after the same manual_seed", stream(), first)
    assert not torch.equal(first, second), "two calls drew one seed"
    for given in (seed, torch.tensor(seed), torch.tensor([seed])):
        same_bits("seed", add_norm_stream(x, dropout_p=0.5, seed=given, backend=backend)[1], first)


@contextmanager
def labelled(case: Case) -> Iterator[None]:
    try:
        yield
    except AssertionError as error:
        raise AssertionError(f"{case}: {error}") from error


CHECKS: dict[str, Check] = {
    check.__name__: check
    for check in (
        results_agree,
        outputs_are_written_whole,
        outputs_may_be_inputs,
        only_asked_gradients,
        unasked_gradients_are_not_made,
        mask_is_the_published_one,
        rows_are_independent,
        threads_do_not_matter,
        specials_stay_in_their_row,
        dropout_off_draws_nothing,
        seeds_come_from_torch,
        *precision.CHECKS,
    )
}


def fingerprint(backend: str | None) -> str:
    """A digest of the bits of many results: equal where two runs agree to the bit."""
    digest = hashlib.sha256()
    for case in BIT_CASES:
        for result in run(build(case), backend).values():
            digest.update(result.contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def main(names: list[str]) -> int:
    """Each check for each route ("plain" is the call without `backend`); prints what failed and the fingerprints."""
    failed = 0
    for name in names:
        backend = None if name == "plain" else name
        for label, one in CHECKS.items():
            try:
                one(backend)
            except AssertionError as error:
                failed += 1
                print(f"FAILED {name} {label}: {error}")
        print(f"{name} {fingerprint(backend)}")
    return min(failed, 1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
