"""The problems that every backend is given: all options, dtypes, widths and memory layouts, a few of each at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from .oracle import Problem

F64, F32, BF16, F16 = torch.float64, torch.float32, torch.bfloat16, torch.float16
DTYPES = (F64, F32, BF16, F16)
WIDTHS = (1, 2, 3, 7, 8, 15, 16, 17, 31, 33, 63, 64, 65, 100, 127, 128, 130, 255, 257, 384, 768, 1000, 1031, 4099)


@dataclass(frozen=True, kw_only=True)
class Case:
    """One problem, described; `build` makes it, the same every time."""

    shape: tuple[int, ...] = (5, 33)
    norm: str = "layer"
    x: torch.dtype = F32
    residual: torch.dtype | None = F32
    parameters: torch.dtype | None = None  # None: x's
    weight: bool = True
    bias: bool = True
    branch_bias: bool = False
    branch_scale: Literal["", "number", "0-d", "vector", "zero"] = ""
    row_scale: tuple[int, ...] | None = None
    mean: float = 0.0
    layout: str = "contiguous"
    options: tuple[tuple[str, Any], ...] = ()
    grads: str = "both"  # which of y's and the stream's gradient arrive: "both", "y", "stream"

    def __str__(self) -> str:
        changed = [f"{k}={v}" for k, v in vars(self).items() if v != getattr(PLAIN, k)]
        return " ".join(changed).replace("torch.", "") or "plain"


PLAIN = Case()


def build(case: Case) -> Problem:
    source = torch.Generator().manual_seed(7)
    d = case.shape[-1]

    def normal(shape: Sequence[int], dtype: torch.dtype, mean: float = 0.0, std: float = 1.0) -> Tensor:
        return (torch.randn(shape, generator=source, dtype=F64) * std + mean).to(dtype)

    p = case.parameters or case.x
    x = LAYOUTS[case.layout](normal(case.shape, case.x, case.mean / 2))
    arguments: dict[str, Any] = {"x": x, "norm": case.norm, **dict(case.options)}
    if case.residual is not None:
        arguments["residual"] = LAYOUTS[case.layout](normal(case.shape, case.residual, case.mean / 2))
    if case.weight:
        arguments["weight"] = normal((d,), p, 1.0, 0.3)
    if case.bias:
        arguments["bias"] = normal((d,), p)
    if case.branch_bias:
        arguments["branch_bias"] = normal((d,), p)
    scales: dict[str, Callable[[], Any]] = {
        "number": lambda: 0.7,
        "0-d": lambda: normal((), p, 0.5, 0.1),
        "vector": lambda: normal((d,), p, 0.5, 0.1),
        "zero": lambda: torch.zeros((), dtype=p),
    }
    if case.branch_scale:
        arguments["branch_scale"] = scales[case.branch_scale]()
    if case.row_scale is not None:
        arguments["row_scale"] = normal(case.row_scale, p, 1.0, 0.3)
    if arguments.get("dropout_p"):
        arguments.setdefault("seed", 1234567)
    problem = Problem(arguments)
    dy = LAYOUTS[case.layout](normal(case.shape, problem.out_dtype))
    ds = normal(case.shape, problem.stream_dtype)
    return Problem(arguments, dy if case.grads != "stream" else None, ds if case.grads != "y" else None)


def options(**values: Any) -> tuple[tuple[str, Any], ...]:
    return tuple(values.items())


# -- memory layouts: the same values, laid out otherwise -------------------------------------------


def padded(t: Tensor) -> Tensor:
    """A slice of something wider, starting at an odd element: nothing is aligned."""
    wide = t.new_full((*t.shape[:-1], t.shape[-1] + 3), torch.nan)
    wide[..., 1:-2] = t
    return wide[..., 1:-2]


def every_other_row(t: Tensor) -> Tensor:
    if t.dim() < 2:
        return padded(t)
    holder = t.new_full((*t.shape[:-2], 2 * t.shape[-2], t.shape[-1]), torch.nan)
    holder[..., ::2, :] = t
    return holder[..., ::2, :]


def transposed(t: Tensor) -> Tensor:
    """The columns are the outermost dimension."""
    return t.movedim(-1, 0).contiguous().movedim(0, -1)


def swapped(t: Tensor) -> Tensor:
    """The row dimensions in reverse order in memory, as after (batch, step) -> (step, batch)."""
    order = (*range(t.dim() - 2, -1, -1), t.dim() - 1)
    inverse = [order.index(i) for i in range(t.dim())]
    return t.permute(order).contiguous().permute(inverse)


def expanded(t: Tensor) -> Tensor:
    """One row, seen many times: stride 0."""
    return t[(slice(0, 1),) * (t.dim() - 1)].expand(t.shape)


def windows(t: Tensor) -> Tensor:
    """Rows that overlap: each starts one element after the one before."""
    rows = t.shape[:-1].numel()
    line = torch.cat((t.reshape(-1), t.new_ones(rows + t.shape[-1])))
    return line.as_strided((rows, t.shape[-1]), (1, 1)).unflatten(0, t.shape[:-1]) if t.dim() > 1 else t


def step_two(t: Tensor) -> Tensor:
    """Columns two elements apart."""
    holder = t.new_full((*t.shape, 2), torch.nan)
    holder[..., 0] = t
    return holder[..., 0]


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda t: t,
    "padded": padded,
    "every_other_row": every_other_row,
    "transposed": transposed,
    "swapped": swapped,
    "expanded": expanded,
    "windows": windows,
    "step_two": step_two,
}


# -- the list ---------------------------------------------------------------------------------------

EVERYTHING = Case(
    shape=(2, 3, 33),
    branch_bias=True,
    branch_scale="vector",
    row_scale=(2, 3),
    options=options(dropout_p=0.3, residual_scale=1.5, weight_offset=1.0, eps=1e-3),
)
NORMS = ("layer", "rms")


def option_cases(norm: str, dtype: torch.dtype) -> list[Case]:
    """Each option alone, then all at once."""
    plain = Case(norm=norm, x=dtype, residual=dtype)
    return [
        plain,
        replace(plain, weight=False, bias=False),
        replace(plain, weight=False),
        replace(plain, bias=False, grads="y"),
        replace(plain, grads="stream"),
        replace(plain, residual=None),
        replace(plain, residual=None, branch_scale="number"),
        replace(plain, mean=30.0, options=options(eps=0.0)),
        replace(plain, branch_bias=True),
        replace(plain, branch_scale="number", options=options(dropout_p=0.1)),
        replace(plain, branch_scale="0-d"),
        replace(plain, branch_scale="vector"),
        replace(plain, branch_scale="zero", branch_bias=True),
        replace(plain, shape=(3, 4, 17), row_scale=(3, 4)),
        replace(plain, shape=(3, 4, 17), row_scale=(3, 1)),
        replace(plain, shape=(3, 4, 17), row_scale=(4,), branch_scale="0-d"),
        replace(plain, shape=(3, 4, 17), row_scale=()),
        replace(plain, options=options(residual_scale=-0.5)),
        replace(plain, options=options(weight_offset=1.0), bias=False),
        replace(plain, options=options(dropout_p=0.1)),
        replace(plain, residual=None, options=options(dropout_p=0.5, seed=-3)),
        replace(plain, options=options(dropout_p=0.4, training=False)),
        replace(EVERYTHING, norm=norm, x=dtype, residual=dtype),
    ]


def mixed_cases() -> list[Case]:
    """Every pair of x and residual, with other parameters, results and streams in turn."""
    cases = []
    for i, x in enumerate(DTYPES):
        for j, residual in enumerate(DTYPES):
            turn = DTYPES[(i + 2 * j + 1) % 4], DTYPES[(i + j) % 4], DTYPES[(2 * i + j + 1) % 4]
            given = options(dropout_p=0.2, out_dtype=turn[1], stream_dtype=turn[2])
            cases.append(replace(EVERYTHING, x=x, residual=residual, parameters=turn[0], options=given))
    return cases


def unrounded_cases() -> list[Case]:
    """Half precision in and out, with z kept in float32: the gradients' own rounding is all that is allowed."""
    cases = []
    for dtype in (BF16, F16):
        for norm in NORMS:
            for shape in ((1, 33), (5, 64), (17, 130), (300, 40)):
                kept = options(stream_dtype=F32, dropout_p=0.1)
                base = Case(shape=shape, norm=norm, x=dtype, residual=dtype, branch_bias=True, options=kept)
                cases += [base, replace(base, branch_scale="vector", row_scale=shape[:1])]
    return cases


def width_cases() -> list[Case]:
    cases = []
    for i, d in enumerate(WIDTHS):
        for dtype in (F32, BF16, DTYPES[i % 4]):
            rows = 1 + i % 7
            cases.append(Case(shape=(rows, d), x=dtype, residual=dtype, norm=NORMS[i % 2], mean=float(i % 3)))
        cases.append(replace(EVERYTHING, shape=(3, d), row_scale=(3,), norm=NORMS[(i + 1) % 2], x=BF16, residual=BF16))
    return cases


def layout_cases() -> list[Case]:
    cases = [Case(shape=(4, 3, 40), layout=name, norm=norm) for name in LAYOUTS for norm in NORMS]
    cases += [replace(EVERYTHING, shape=(3, 2, 2, 21), row_scale=(2, 2), layout=name, x=F16) for name in LAYOUTS]
    return [*cases, Case(shape=(16,)), Case(shape=(16,), layout="padded"), Case(shape=(2, 1, 3, 1, 2, 9))]


CASES = [
    *[case for norm in NORMS for dtype in DTYPES for case in option_cases(norm, dtype)],
    *mixed_cases(),
    *unrounded_cases(),
    *width_cases(),
    *layout_cases(),
]
