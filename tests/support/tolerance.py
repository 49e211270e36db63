"""How close is close enough: computed from the arithmetic, never typed."""

from __future__ import annotations

import torch
from torch import Tensor

from .oracle import Exact, Problem

SLACK = 2  # a kernel may err twice as much as torch's own operations in the same dtypes


def agree(name: str, got: Tensor, want: Tensor, allowed: Tensor | float) -> None:
    """|got - want| <= allowed + one unit in the last place, element by element; NaN and inf where `want` has them."""
    assert got.shape == want.shape, f"{name}: shape {tuple(got.shape)}, not {tuple(want.shape)}"
    finite = want.isfinite()
    special = torch.equal(got.double()[~finite].nan_to_num(nan=7.0), want[~finite].nan_to_num(nan=7.0))
    assert special, f"{name}: NaN or inf in the wrong places"
    info = torch.finfo(got.dtype)
    bound = allowed + info.eps * abs(want) + info.tiny * info.eps
    excess = ((got.double() - want).abs() / bound)[finite]
    worst = excess.nan_to_num(nan=torch.inf).max().item() if excess.numel() else 0.0
    assert worst <= 1, f"{name}: the error is {worst:.3g} times what rounding explains, {describe(got, want, finite)}"


def describe(got: Tensor, want: Tensor, finite: Tensor) -> str:
    error = torch.where(finite, (got.double() - want).abs().nan_to_num(nan=torch.inf), 0)
    at = torch.unravel_index(error.argmax(), error.shape)
    where = tuple(int(i) for i in at)
    return f"{got.dtype} {tuple(got.shape)}: got {got[where].item():.9g}, want {want[where].item():.9g} at {where}"


def check(problem: Problem, want: Exact, got: dict[str, Tensor], composite: dict[str, Tensor]) -> None:
    """Every result within rounding of float64, and none much worse than torch's own operations."""
    for name, result in got.items():
        dtype = problem.dtype_of(name)
        assert result.dtype == dtype, f"{name} has dtype {result.dtype}, not {dtype}"
        agree(name, result, want.results[name], want.allowed[name])
        no_worse(name, result, want.results[name], want.allowed[name], composite[name])


def no_worse(name: str, got: Tensor, want: Tensor, allowed: Tensor, composite: Tensor) -> None:
    """err(kernel) <= 2 err(composite) + rounding, the largest errors compared."""
    if want.numel() == 0 or not want.isfinite().all():
        return
    error, theirs = ((t.double() - want).abs().max().item() for t in (got, composite))
    rounding = torch.finfo(got.dtype).eps * want.abs().max().item() + allowed.max().item()
    assert error <= SLACK * theirs + rounding, f"{name}: error {error:.3g}, torch's own {theirs:.3g}"


def units(got: Tensor, want: Tensor) -> float:
    """The largest error in units in the last place of the row's largest value."""
    largest = want.abs().amax(-1, keepdim=True).to(got.dtype)
    unit = torch.nextafter(largest, torch.full_like(largest, torch.inf)).double() - largest.double()
    return ((got.double() - want).abs() / unit).max().item()


def same_bits(name: str, a: Tensor, b: Tensor) -> None:
    """Equal to the bit, NaN included."""
    assert a.dtype == b.dtype, f"{name}: {a.dtype} is not {b.dtype}"
    assert a.shape == b.shape, f"{name}: {tuple(a.shape)} is not {tuple(b.shape)}"
    kind = {2: torch.int16, 4: torch.int32, 8: torch.int64}[a.element_size()]
    left, right = (t.detach().contiguous().view(kind) for t in (a, b))
    differ = int((left != right).sum())
    assert differ == 0, f"{name}: {differ} of {a.numel()} elements differ in their bits"
