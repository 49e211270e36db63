"""The tests' own tools can tell right from wrong."""

from __future__ import annotations

import platform

import pytest
import torch

from .support import precision
from .support.cases import CASES, LAYOUTS, Case, build
from .support.oracle import as_written, exact
from .support.poison import poisoned_memory
from .support.tolerance import agree, no_worse, same_bits, units


def test_torch_alone_would_not_pass() -> None:
    """What the bound is worth: torch's own LayerNorm is hundreds of units away at mean 1e4."""
    z = precision.normal((20, 768), 1e4).float()
    assert units(torch.nn.functional.layer_norm(z, (768,)), precision.normalised(z)) > 100 * precision.ULPS


def test_agree_rejects_what_it_should() -> None:
    nan, inf = torch.nan, torch.inf
    want = torch.tensor([1.0, nan, inf], dtype=torch.float64)
    agree("as it is", want.float(), want, 0.0)
    for wrong in ([1.00001, nan, inf], [1, inf, inf], [1, nan, -inf], [nan, nan, inf], [1, 0, inf]):
        with pytest.raises(AssertionError):
            agree("wrong", torch.tensor(wrong), want, 0.0)
    with pytest.raises(AssertionError):
        agree("another shape", want.float()[:2], want, 0.0)


def test_no_worse_rejects_what_is_worse() -> None:
    want = torch.ones(3, dtype=torch.float64)
    no_worse("close", want.float() + 2e-7, want, 0 * want, want.float() + 1e-7)
    with pytest.raises(AssertionError):
        no_worse("far", want.float() + 1e-5, want, 0 * want, want.float() + 1e-6)


def test_same_bits_rejects_minus_zero() -> None:
    with pytest.raises(AssertionError):
        same_bits("zero and minus zero", torch.zeros(1), -torch.zeros(1))


def test_torch_memory_is_poisoned() -> None:
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        with poisoned_memory():
            assert torch.empty(100, dtype=dtype).isnan().all()
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
def test_malloc_is_poisoned() -> None:
    with poisoned_memory(by_torch=False):
        fresh = torch.empty(5000, dtype=torch.uint8)
    assert (fresh == 0x7F).float().mean() > 0.9


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_are_what_they_say(layout: str) -> None:
    t = torch.arange(24.0).reshape(3, 2, 4)
    made = LAYOUTS[layout](t)
    assert made.shape == t.shape
    assert made.isfinite().all()
    assert made.is_contiguous() == (layout == "contiguous")
    if layout not in ("expanded", "windows"):
        assert torch.equal(made, t)


def test_two_derivations_agree() -> None:
    """The formulas of `exact` and autograd through torch's own operations, both in float64, for every float64 case."""
    wide = [torch.float64] * 3
    problems = {case: build(case) for case in CASES if case.x == torch.float64 and case.parameters is None}
    problems = {c: p for c, p in problems.items() if [p.stored_dtype, p.out_dtype, p.stream_dtype] == wide}
    assert len(problems) > 40
    for case, problem in problems.items():
        want = exact(problem)
        for name, theirs in as_written(problem).items():
            agree(f"{case}: {name}", theirs.double(), want.results[name], 1e3 * want.allowed[name])


def test_cases_differ() -> None:
    assert len(set(CASES)) > 300
    assert str(Case()) == "plain"
