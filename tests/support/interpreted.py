"""The acceptance checks that Triton's interpreter does in a minute: `python -m tests.support.interpreted`, with
TRITON_INTERPRET=1. Whole checks where they are small, a spread of the cases elsewhere, and the widths beyond which
a row is not kept in registers (forward) or is split over programs (backward)."""

from __future__ import annotations

from typing import Any
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from addnorm import add_norm, add_norm_stream, rng
from addnorm.backends.triton import run

from . import acceptance
from .acceptance import CHECKS, labelled, solved
from .calls import run as carry_out
from .cases import BF16, CASES, DTYPES, EVERYTHING, F16, F32, F64, NORMS, Case, build, options
from .oracle import FEW, Problem, exact
from .poison import poisoned_memory
from .precision import normal, normalised
from .tolerance import agree, check, units

WHOLE = ("only_asked_gradients", "unasked_gradients_are_not_made", "dropout_off_draws_nothing", "seeds_come_from_torch")
SPREAD = ("outputs_are_written_whole", "outputs_may_be_inputs")
WIDE = (
    *[Case(shape=(2, d), norm=norm, x=dtype, residual=dtype, mean=3.0, options=options(dropout_p=p))
      for d, dtype, norm, p in ((20000, BF16, "layer", 0.2), (20000, BF16, "rms", 0.0), (16391, F32, "rms", 0.2),
                                (13000, F32, "layer", 0.0), (9001, F32, "rms", 0.0), (9001, F64, "layer", 0.2))],
    Case(shape=(2, 5120), x=F16, residual=F16), Case(shape=(9, 768), x=BF16), Case(shape=(2, 7000), x=F16),
    *[Case(shape=(2, 12000), x=BF16, residual=BF16, norm=norm) for norm in NORMS],
    Case(shape=(2, 9000), x=BF16, residual=BF16, branch_bias=True, branch_scale="vector", row_scale=(2,)),
    Case(shape=(2, 6000), norm="rms", branch_scale="0-d", branch_bias=True),
)  # fmt: skip


def results_agree() -> None:
    for case in (*CASES[::10], EVERYTHING, *WIDE):
        problem, want, composite = solved(case)
        with poisoned_memory():
            got = carry_out(problem, "triton")
        with labelled(case):
            check(problem, want, got, composite)


def exact_at_any_mean() -> None:
    for d in (33, 1031, 13000):
        for mean in (0.0, 1e4, 1e6):
            z = normal((2, d), mean).float()
            z[1, : d // 4] -= 50.0  # a first tile far from the row's mean
            error = units(add_norm(z, eps=1e-5, backend="triton"), normalised(z))
            assert error <= 4, f"mean {mean:g}, width {d}: {error:.3g} units in the last place"


def rows_may_be_huge() -> None:
    """A row of equal numbers, so large that the mean over the deviation is infinite in float32: what a tile has beyond
    the row would make NaN of it. Of RMSNorm, which subtracts no mean, as large as its sum of squares may be."""
    eps = torch.finfo(F32).eps
    for norm, value in (("layer", 2.0**112), ("rms", 2.0**56)):
        for d in (1, 5, 1500, 9001, 20001):
            dy = (normal((3, d), 0.0) * 2.0**-20).float()
            problem = Problem(
                {"x": torch.full((3, d), value), "weight": normal((d,), 1.0).float(), "bias": normal((d,), 0.0).float(),
                 "row_scale": torch.ones(3), "norm": norm, "eps": 1e-12}, dy=dy,
            )  # fmt: skip
            want, size = exact(problem).results, abs(dy * problem.arguments["weight"]).amax(-1, keepdim=True).double()
            size_dz = size * (1e6 if norm == "layer" else 1 / value)
            allowed = {
                "y": problem.arguments["weight"].abs() + problem.arguments["bias"].abs(), "stream": 0.0, "x": size_dz,
                "weight": abs(dy).sum(0), "bias": abs(dy).sum(0), "row_scale": value * d * size_dz[:, 0],
            }  # fmt: skip
            for name, got in carry_out(problem, "triton").items():
                agree(f"{name} {norm} {d}", got, want[name], FEW * eps * allowed[name])


def infinite_parameters_make_no_nan() -> None:
    """Three rows in a program for more: the others, which are zero, are no part of a column's sum."""
    infinite = torch.full((5,), torch.inf)
    for name, asked in (("branch_scale", "branch_bias"), ("branch_bias", "branch_scale")):
        given: Any = {name: infinite, asked: torch.ones(5, requires_grad=True)}
        _, z = add_norm_stream(torch.ones(3, 5), **given, backend="triton")
        (got,) = torch.autograd.grad(z, given[asked], torch.ones(3, 5))
        assert torch.equal(got, infinite), f"{asked} where {name} is infinite: {got}"


def mask_is_the_published_one() -> None:
    for rows, d, seed in ((2, 33, 2**40 + 7), (5, 130, -1), (3, 1031, 0)):
        want = rng.mask(seed, rows, d, 32768)
        for dtype in DTYPES:
            x = torch.ones(rows, d, dtype=dtype, requires_grad=True)
            _, z = add_norm_stream(x, dropout_p=0.5, seed=seed, backend="triton")
            z.backward(torch.ones_like(z))
            assert x.grad is not None
            assert torch.equal(z != 0, want), f"forward {dtype} {rows}x{d} seed {seed}"
            assert torch.equal(x.grad != 0, want), f"backward {dtype} {rows}x{d} seed {seed}"


def rows_are_independent() -> None:
    for dtype in (F32, BF16):
        for d in (17, 300):
            problem = build(Case(shape=(23, d), x=dtype, residual=dtype))
            want = carry_out(problem, "triton")["y"]
            a = problem.arguments
            for rows in (slice(0, 1), slice(5, 8), slice(13, 23)):
                part = {k: v[rows] if k in ("x", "residual") else v for k, v in a.items()}
                assert torch.equal(add_norm(**part, backend="triton"), want[rows])


def long_column_sums_are_float32() -> None:
    problem = build(Case(shape=(4000, 24), x=BF16, residual=BF16, mean=0.5, options=options(stream_dtype=F32)))
    want, got = exact(problem), carry_out(problem, "triton")
    for name in ("weight", "bias"):
        agree(name, got[name], want.results[name], want.allowed[name])


def rows_may_be_far_apart() -> None:
    """A step of more than 2^31 elements from row to row; of the memory between only the address space is taken."""
    step, d = 2**31 + 64, 24
    want, dy = (normal((2, d), 1.0).to(F16) for _ in range(2))
    x, grad = (torch.empty(step + d, dtype=F16).as_strided((2, d), (step, 1)) for _ in range(2))
    x.copy_(want)
    grad.copy_(dy)
    results = []
    for leaf, arriving in ((want, dy), (x, grad)):
        leaf = leaf.detach().requires_grad_()
        y = add_norm(leaf, None, torch.ones(d, dtype=F16), backend="triton")
        results.append((y.detach(), *torch.autograd.grad(y, leaf, arriving)))
    for near, far in zip(*results, strict=True):
        assert torch.equal(near, far)


def what_is_not_plain_is_resolved() -> None:
    """A negative view holds the opposite of its memory, and a zero tensor has none."""
    x = normal((3, 40), 1.0).float()
    with torch.no_grad():
        assert torch.equal(add_norm(torch._neg_view(x), backend="triton"), add_norm(-x, backend="triton"))
        zeros = torch._efficientzerotensor((3, 40))
        assert torch.equal(add_norm(x, zeros, backend="triton"), add_norm(x, zeros + 0, backend="triton"))


def watched_calls_are_the_same() -> None:
    """Under a mode a call goes through the operators, else past them, to the same bits."""
    problem = build(EVERYTHING)
    want = carry_out(problem, "triton")
    with Watch() as watch:
        got = carry_out(problem, "triton")
    assert {"addnorm.forward.default", "addnorm.backward.default"} <= watch.seen
    for name, value in want.items():
        assert torch.equal(got[name], value), name


def a_sum_without_its_norm_may_be_changed() -> None:
    """Its gradient is any tensor of torch's, one number for all among them."""
    x, gradient = torch.randn(3, 40, requires_grad=True), torch.ones(()).expand(3, 40)
    kept = rng.mask(1, 3, 40, 32768)
    _, z = add_norm_stream(x, dropout_p=0.5, seed=1, backend="triton")
    z.mul_(3)
    assert torch.equal(torch.autograd.grad(z, x, gradient)[0], 6.0 * kept)


def checkpoints_and_second_derivatives_hold() -> None:
    x, residual = torch.randn(3, 40, requires_grad=True), torch.randn(3, 40)

    def call(x: torch.Tensor) -> torch.Tensor:
        return add_norm_stream(x, residual, dropout_p=0.5, backend="triton")[0].pow(2).sum()

    grads = []
    for run_it in (call, lambda x: checkpoint(call, x, use_reentrant=False)):
        torch.manual_seed(1)
        grads += torch.autograd.grad(run_it(x), x)
    assert torch.equal(*grads)
    (grad,) = torch.autograd.grad(call(x), x, create_graph=True)
    torch.autograd.grad(grad.pow(2).sum(), x)


class Watch(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen.add(str(func))
        return func(*args, **(kwargs or {}))


def mutants_are_rejected() -> None:
    """Each check above is seen to fail."""
    wrong = (
        (run, "keep_scale", lambda call: 1.0, results_agree),
        (run, "dropout_threshold", lambda p: 1000, mask_is_the_published_one),
        (run, "POLICIES", {**run.POLICIES, "layer": run.POLICIES["rms"]}, constant_rows),
        (run, "COLUMN_GRADIENTS", ("bias", "weight", "branch_bias", "branch_scale"), long_column_sums_are_float32),
    )
    for owner, name, value, judge in wrong:
        with mock.patch.object(owner, name, value):
            try:
                judge()
            except (AssertionError, IndexError):
                continue
        raise AssertionError(f"{judge.__name__} accepts a wrong {name}")


def constant_rows() -> None:
    x, bias = torch.full((3, 33), 1000.1), torch.randn(33)
    y = add_norm(x, None, torch.randn(33), bias, eps=1e-12, backend="triton")
    assert torch.equal(y, bias.expand(3, 33))


def main() -> None:
    torch.manual_seed(0)
    for judge in (
        results_agree, exact_at_any_mean, rows_may_be_huge, infinite_parameters_make_no_nan,
        mask_is_the_published_one, rows_are_independent,
        long_column_sums_are_float32, constant_rows, rows_may_be_far_apart, watched_calls_are_the_same,
        checkpoints_and_second_derivatives_hold, a_sum_without_its_norm_may_be_changed,
        what_is_not_plain_is_resolved,
        mutants_are_rejected,
    ):  # fmt: skip
        judge()
    for name in WHOLE:
        CHECKS[name]("triton")
    with mock.patch.object(acceptance, "CASES", CASES[:180:12]):
        for name in SPREAD:
            CHECKS[name]("triton")


if __name__ == "__main__":
    main()
