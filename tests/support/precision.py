"""Checks where rounding has every chance: large means, wide rows, constant rows, long sums in half precision."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from addnorm import add_norm, add_norm_stream

from .calls import PLAIN, run
from .cases import BF16, DTYPES, F16, F32, F64, NORMS, Case, build, options
from .oracle import Problem, as_written, exact
from .tolerance import agree, no_worse, units

MEANS = (0.0, 1e2, 1e4, 1e6)
WIDE = (33, 100, 768, 1031, 4096, 5000, 65537, 131072)
# What blocked sums attain by the corrected two-pass rule (Chan, Golub & LeVeque 1983): the mean of z - mean(z), which
# is mean(z)'s rounding, is subtracted too.
ULPS = 4


def exact_at_any_mean(backend: str | None) -> None:
    """float32 LayerNorm: at most 4 units in the last place of the row's largest value, and better than torch's."""
    for d in WIDE:
        for mean in MEANS:
            z = normal((2 if d > 5000 else 20, d), mean).float()
            branch = normal(z.shape, 0.0).float()
            for x, residual in ((z, None), (branch, z), (z, branch)):
                kept = x if residual is None else x + residual
                want = normalised(kept)
                got = add_norm(x, residual, eps=1e-5, backend=backend)
                error = units(got, want)
                assert error <= ULPS, f"mean {mean:g}, width {d}: {error:.3g} units in the last place"
                theirs = units(torch.nn.functional.layer_norm(kept, (d,)), want)
                assert error <= theirs + 1, f"mean {mean:g}, width {d}: {error:.3g} units, torch {theirs:.3g}"


def rms_is_exact(backend: str | None) -> None:
    """float32 RMSNorm, the same."""
    for d in WIDE:
        for mean in MEANS:
            z = normal((2, d), mean).float()
            want = z.double() * torch.rsqrt(z.double().square().mean(-1, keepdim=True) + 1e-5)
            error = units(add_norm(z, norm="rms", backend=backend), want)
            assert error <= ULPS, f"mean {mean:g}, width {d}: {error:.3g} units in the last place"


def constant_rows_give_bias(backend: str | None) -> None:
    """A row without variance gives the bias itself, without NaN in the gradients, however small eps is."""
    for dtype in DTYPES:
        for d in (1, 3, 33, 100, 768, 1031):
            huge = [0.9 * torch.finfo(dtype).max] if backend in (PLAIN, "cpu") else []
            for value in (0.0, 0.1, 1 / 3, 1000.1, -12345.678, 54321.98, *huge):
                x = torch.full((3, d), value, dtype=dtype, requires_grad=True)
                weight, bias = normal((d,), 1.0).to(dtype), normal((d,), 0.0).to(dtype)
                y = add_norm(x, None, weight, bias, eps=1e-12, backend=backend)
                assert torch.equal(y, bias.expand(3, d)), f"{dtype} {d} x {value}: {(y - bias).abs().max().item():.3g}"
                y.sum().backward()
                assert x.grad is not None
                assert not x.grad.isnan().any()


def long_column_sums_are_float32(backend: str | None) -> None:
    """Parameter gradients over 20,000 half-precision rows: as good as sums in float32, rounded once."""
    for dtype in (BF16, F16):
        for norm in NORMS if dtype == BF16 else NORMS[:1]:
            x, residual = (normal((20000, 24), 0.5).to(dtype) for _ in range(2))
            vectors = {name: normal((24,), 1.0).to(dtype) for name in ("weight", "bias", "branch_bias", "branch_scale")}
            given = {"norm": norm, "stream_dtype": F32, "x": x, "residual": residual, **vectors}
            dy = normal(x.shape, 0.01).to(dtype)
            problem = Problem(given, dy=dy)
            want, got = exact(problem), run(problem, backend)
            wide = {k: v.float() if isinstance(v, Tensor) else v for k, v in given.items()}
            in_float32 = as_written(Problem(wide, dy=dy.float()))
            for name in vectors:
                value = want.results[name]
                close = (in_float32[name].double() - value).abs().max().item()
                rounding = torch.finfo(dtype).eps / 2 * value.abs()
                error = (got[name].double() - value).abs()
                worst = (error / (2 * close + rounding)).max().item()
                assert worst <= 1, f"{name} {dtype} {norm}: {worst:.3g} times a float32 accumulation's error"


def half_squares_do_not_overflow(backend: str | None) -> None:
    """float16 values whose squares are beyond its range, and subnormal bfloat16 values, are normalised like others; in
    C++ so are those whose squares, or products with dy, are beyond the range of float32, of which plain torch makes
    0 or NaN."""
    scaled_down = backend in (PLAIN, "cpu")
    huge = [(dtype, size) for dtype in (BF16, F32) for size in (1e20, 1e32)] if scaled_down else []
    for norm in NORMS:
        for dtype, size in ((F16, 3e4), (BF16, 1e18), (F32, 1e18), (F64, 1e100), *huge):
            x = (normal((4, 300), 0.0) * size / 5).to(dtype)
            problem = Problem({"x": x, "norm": norm}, dy=normal(x.shape, 0.0).to(dtype))
            got, want = run(problem, backend), exact(problem)
            for name in ("y", "x"):
                agree(f"{name} {dtype} near {size:g}", got[name], want.results[name], want.allowed[name])
        if scaled_down:  # the oracle's own squares overflow
            x = normal((4, 300), 0.0)
            got, want = (add_norm(z, norm=norm, eps=0, backend=backend) for z in (x * 2.0**1000, x))
            assert units(got, want) <= ULPS, f"float64 near 2^1000, {norm}"
        for dtype in (BF16, F32) if scaled_down else ():  # dy * z overflows
            x = (normal((4, 300), 0.0) * 1e36).to(dtype)
            dy = (x.sign() * normal(x.shape, 1.0).abs() * 1e6).to(dtype)
            problem = Problem({"x": x, "norm": norm, "weight": normal((300,), 1.0).to(dtype)}, dy=dy)
            got, want = run(problem, backend), exact(problem)
            for name, value in want.results.items():
                agree(f"{name} {dtype} near 1e36", got[name], value, want.allowed[name])
    subnormal = (normal((4, 300), 0.0) * 1e-39).to(BF16)
    _, stream = add_norm_stream(subnormal, torch.zeros_like(subnormal), backend=backend)
    assert torch.equal(stream, subnormal), "subnormal bfloat16 values were flushed"


def lone_subnormals_are_kept(backend: str | None) -> None:
    """One subnormal bfloat16 among ordinary values and zeros, in an output and in a gradient that passes as it is."""
    for column in (0, 1, 17, 130, 299):
        alone = torch.zeros(300, dtype=BF16)
        alone[column], alone[(column + 150) % 300] = 1e-39, -1.0
        x = normal((3, 300), 0.0).to(BF16).requires_grad_()
        y = add_norm(x, torch.zeros_like(x), weight=torch.zeros_like(alone), bias=alone, backend=backend)
        assert torch.equal(y, alone.expand_as(y)), f"a subnormal bias in column {column} was flushed"
        _, stream = add_norm_stream(x, torch.zeros_like(x), backend=backend)
        (gradient,) = torch.autograd.grad(stream, x, alone.expand_as(x))
        assert torch.equal(gradient, alone.expand_as(x)), f"a subnormal gradient in column {column} was flushed"


def no_worse_than_torch(backend: str | None) -> None:
    """Outputs and gradients at any mean: at most twice torch's error and a rounding of the result."""
    for dtype in (F32, BF16, F16):  # for float64 the oracle itself is no better
        for norm in NORMS:
            for mean in (0.0, 3.0, 100.0):
                case = Case(shape=(50, 200), x=dtype, residual=dtype, norm=norm, mean=mean, options=options(eps=1e-6))
                problem = build(case)
                got, want, theirs = run(problem, backend), exact(problem), as_written(problem)
                for name, result in got.items():
                    slack = want.allowed[name] * 0
                    no_worse(f"{name} {dtype} {norm} mean {mean:g}", result, want.results[name], slack, theirs[name])


def normalised(z: Tensor) -> Tensor:
    """float64 LayerNorm of a float32 z, corrected so that float64 itself is not the limit."""
    d = z.double() - z.double().mean(-1, keepdim=True)
    d = d - d.mean(-1, keepdim=True)
    return d * torch.rsqrt(d.square().mean(-1, keepdim=True) + 1e-5)


def normal(shape: torch.Size | tuple[int, ...], mean: float) -> Tensor:
    source = torch.Generator().manual_seed(sum(shape))
    return torch.randn(shape, generator=source, dtype=F64) + mean


Check = Callable[[str | None], None]
CHECKS: tuple[Check, ...] = (
    exact_at_any_mean,
    rms_is_exact,
    constant_rows_give_bias,
    long_column_sums_are_float32,
    half_squares_do_not_overflow,
    lone_subnormals_are_kept,
    no_worse_than_torch,
)
