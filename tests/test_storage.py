"""Tensors whose memory is not there, is shared until written, or would be too much."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from addnorm import add_norm, add_norm_stream, plain
from addnorm.backends import native

from .support.calls import routes
from .support.tolerance import same_bits

needs_extension = pytest.mark.skipif(native.EXTENSION is None, reason=native.REASON)
by_the_kernels = pytest.mark.parametrize("backend", [pytest.param(b, marks=needs_extension) for b in (None, "cpu")])
ROWS, D = 4, 8


def operands() -> dict[str, Tensor]:
    vectors = {name: torch.randn(D) for name in ("weight", "bias", "branch_bias", "branch_scale")}
    return {"x": torch.randn(ROWS, D), "residual": torch.randn(ROWS, D), **vectors, "row_scale": torch.randn(ROWS)}


def free(t: Tensor) -> None:
    """As FSDP does."""
    t.untyped_storage().resize_(0)


@by_the_kernels
@pytest.mark.parametrize("name", [*operands(), "out", "stream_out"])
@pytest.mark.parametrize("layout", ["whole", "part", "columns"])
def test_a_freed_operand_is_an_error_that_names_it(backend: str | None, name: str, layout: str) -> None:
    given = {**operands(), "out": torch.empty(ROWS, D), "stream_out": torch.empty(ROWS, D)}
    t = given[name]
    memory = torch.empty(2 * t.numel() + 4)
    at = {"whole": 0, "part": 4, "columns": 4}[layout]
    step = 2 if layout == "columns" else 1
    given[name] = memory.as_strided(t.shape, [step * s for s in t.stride()], at).copy_(t)
    add_norm_stream(**given, backend=backend)
    free(memory)
    torchs_own = "|setStorage" if name == "row_scale" else ""  # of its spreading over the rows
    with pytest.raises(RuntimeError, match=f"the memory of {name} is not allocated{torchs_own}"):
        add_norm_stream(**given, backend=backend)


@by_the_kernels
@pytest.mark.parametrize("name", ["weight", "branch_bias", "branch_scale", "row_scale", "x"])
def test_what_is_freed_before_the_backward_is_an_error_that_names_it(backend: str | None, name: str) -> None:
    given = {key: t.requires_grad_() for key, t in operands().items()}
    y = add_norm(**given, backend=backend)
    free(given[name])
    with pytest.raises(RuntimeError, match=f"the memory of {name} is not allocated"):
        y.sum().backward()


@pytest.mark.parametrize("kinds", [plain.kinds, getattr(native.EXTENSION, "kinds", plain.kinds)])
def test_no_plan_is_for_a_freed_tensor(kinds: Any) -> None:
    whole = torch.randn(ROWS, D)
    part = whole[2:]
    assert kinds((whole, part)) is not None
    free(whole)
    assert kinds((whole,)) is None
    assert kinds((part,)) is None


@pytest.mark.parametrize("backend", routes())
def test_empty_tensors_need_no_memory(backend: str | None) -> None:
    x = torch.randn(ROWS, D)
    part = x[:0]
    free(x)
    assert add_norm(part, part, backend=backend).shape == (0, D)


@by_the_kernels
def test_copy_on_write_tensors_are_copied_where_they_are_written_alone(backend: str | None) -> None:
    given = operands()
    lazy = {name: torch._lazy_clone(t) for name, t in given.items()}
    want = add_norm(**{name: t.clone() for name, t in given.items()}, backend=backend)
    same_bits("y", add_norm(**lazy, backend=backend), want)
    if backend is None:
        assert all(torch._C._is_cow_tensor(t) for t in lazy.values())
    before = given["x"].clone()
    same_bits("out", add_norm(**lazy, out=lazy["x"], backend=backend), want)
    same_bits("the other", given["x"], before)


@by_the_kernels
def test_a_result_of_more_bytes_than_there_are_numbers_for_is_an_error(backend: str | None) -> None:
    """One of 2^64 + 2^19 bytes, which overflow to half a megabyte."""
    with pytest.raises(RuntimeError, match="Storage size calculation overflowed"):
        add_norm(torch.zeros(1, 1).expand(2**62 + 2**17, 1), backend=backend)


@needs_extension
def test_the_floor_refuses_writes_that_are_not_aligned() -> None:
    assert native.EXTENSION is not None
    memory = torch.zeros(161)
    start = -memory.data_ptr() // 4 % 16
    whole, off, reads = memory[start : start + 64], memory[start + 1 : start + 65], [torch.ones(64)]
    native.EXTENSION.stream_floor(reads, [whole], True)
    native.EXTENSION.stream_floor(reads, [off], False)
    with pytest.raises(RuntimeError, match="aligned to 64 bytes"):
        native.EXTENSION.stream_floor(reads, [whole, off], True)
