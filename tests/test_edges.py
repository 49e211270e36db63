"""Sizes that are rare: none, one, a million, and beyond 2^31."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from addnorm import add_norm, add_norm_stream

from .support.calls import routes, run
from .support.cases import DTYPES, EVERYTHING, NORMS, Case, build
from .support.oracle import as_written, exact
from .support.tolerance import agree, check, same_bits

every_route = pytest.mark.parametrize("backend", routes())
FAR = 2**31  # elements


@every_route
@pytest.mark.parametrize("shape", [(0, 5), (3, 0), (0, 0), (2, 0, 4), (0,), (0, 3, 7)])
@pytest.mark.parametrize("norm", NORMS)
def test_empty(backend: str | None, shape: tuple[int, ...], norm: str) -> None:
    """No rows or no columns: empty results; parameter gradients are sums over nothing."""
    given = {**vars(EVERYTHING), "shape": shape, "row_scale": shape[:-1], "norm": norm}
    got = run(build(Case(**given)), backend)
    for name in ("y", "stream", "x", "residual"):
        assert got[name].shape == shape
    for name in ("weight", "bias", "branch_bias", "branch_scale"):
        assert torch.equal(got[name], torch.zeros(shape[-1:]))
    assert torch.equal(got["row_scale"], torch.zeros(shape[:-1]))


@every_route
@pytest.mark.parametrize("shape", [(1,), (1, 1), (5, 1), (1, 7), (1, 1, 1, 1)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_one(backend: str | None, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    for norm in NORMS:
        given = {
            **vars(EVERYTHING),
            "shape": shape,
            "row_scale": shape[:-1],
            "norm": norm,
            "x": dtype,
            "residual": dtype,
        }
        problem = build(Case(**given))
        check(problem, exact(problem), run(problem, backend), as_written(problem))


@every_route
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_million_columns(backend: str | None, dtype: torch.dtype) -> None:
    for norm in NORMS:
        problem = build(Case(shape=(2, 1_000_003), norm=norm, x=dtype, residual=dtype, mean=2.0))
        want = exact(problem)
        for name, result in run(problem, backend).items():
            agree(name, result, want.results[name], want.allowed[name])


@every_route
def test_many_short_rows(backend: str | None) -> None:
    problem = build(Case(shape=(100_000, 3)))
    want = exact(problem)
    for name, result in run(problem, backend).items():
        agree(name, result, want.results[name], want.allowed[name])


def far(values: Tensor, stride: int) -> Tensor:
    """The values, its rows `stride` elements apart in memory that is mapped but, but for them, never touched."""
    rows, d = values.shape
    memory = torch.empty(stride * (rows - 1) + d, dtype=values.dtype)
    return memory.as_strided((rows, d), (stride, 1)).copy_(values)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("norm", NORMS)
def test_results_past_the_caches(norm: str, dtype: torch.dtype) -> None:
    """What is stored past the caches has the bits of what is not, a norm alone and one of a sum."""
    torch.manual_seed(0)
    x, residual = torch.randn(2, 5000, 1024, dtype=dtype)
    for other in (None, residual):
        whole = add_norm(x, other, norm=norm)
        part = add_norm(x[7:20], None if other is None else other[7:20], norm=norm)
        same_bits("y", whole[7:20], part)


@every_route
@pytest.mark.parametrize("norm", NORMS)
def test_offsets_beyond_31_bits(backend: str | None, norm: str) -> None:
    near = [torch.randn(3, 40).half() for _ in range(3)]
    x, residual, dy = (far(t, FAR // 2 + 5) for t in near)
    given = {"norm": norm, "dropout_p": 0.3, "seed": 2, "backend": backend}
    results = []
    for a, b, g in ((x, residual, dy), near):
        a, b = a.requires_grad_(), b.requires_grad_()
        y, z = add_norm_stream(a, b, **given)
        torch.autograd.backward([y, z], [g, g])
        results.append([y.detach(), z.detach(), a.grad, b.grad])
    for one, other in zip(*results, strict=True):
        same_bits("far and near", one, other)
    out, stream_out = far(torch.full((3, 40), torch.nan).half(), FAR // 2 + 3), far(near[0] * 0, FAR // 2 + 9)
    with torch.no_grad():
        add_norm_stream(x, residual, **given, out=out, stream_out=stream_out)
    same_bits("out", out, results[1][0])
    same_bits("stream_out", stream_out, results[1][1])


@every_route
def test_columns_beyond_31_bits_apart(backend: str | None) -> None:
    """Columns so far apart that the whole is in two far corners of memory."""
    memory = torch.empty(FAR + 8, dtype=torch.float16)
    x = memory.as_strided((4, 2), (1, FAR)).copy_(torch.randn(4, 2))
    same_bits("y", add_norm(x, x, backend=backend), add_norm(x.contiguous(), x.contiguous(), backend=backend))


@every_route
def test_more_than_31_bits_of_elements_by_expansion(backend: str | None) -> None:
    """The last of 2^31 + 2 elements of an expanded residual is read from the right place."""
    rows = 3
    row = torch.randn(1, 1, 64)
    wide = row.expand(FAR // 64 + 1, rows, 64)[-1]
    x = torch.randn(rows, 64)
    same_bits("y", add_norm(x, wide, backend=backend), add_norm(x, row[0].expand(rows, 64).clone(), backend=backend))


@every_route
def test_rows_in_nine_dimensions(backend: str | None) -> None:
    """More dimensions than any kernel counts, none of which lie evenly."""
    x = torch.randn(2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 7)[..., ::1].permute(9, 7, 5, 3, 1, 8, 6, 4, 2, 0, 10)
    same_bits("y", add_norm(x, x, backend=backend), add_norm(x.contiguous(), x.contiguous(), backend=backend))


@every_route
def test_a_probability_that_drops_nothing_scales_all_the_same(backend: str | None) -> None:
    """p below 2^-17 rounds to no lane at all; what is kept, and that is everything, is multiplied by 1/(1-p)."""
    x, residual = torch.randn(4, 40).double(), torch.randn(4, 40).double()
    _, z = add_norm_stream(x, residual, dropout_p=7e-6, seed=1, backend=backend)
    torch.testing.assert_close(z, residual + x / (1 - 7e-6), rtol=1e-12, atol=0)


@every_route
def test_an_output_of_many_dimensions_is_written(backend: str | None) -> None:
    """More row dimensions than a kernel's matrix has, none of which lie evenly in memory."""
    shape = (2,) * 9 + (5,)
    out = torch.zeros([3 * size for size in shape])[(slice(0, None, 3),) * 9 + (slice(0, 5),)]
    x = torch.randn(shape)
    add_norm(x, out=out, backend=backend)
    assert torch.equal(out, add_norm(x, backend=backend))
