"""Bad input: the named error, before anything happens, the same by every route."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from addnorm import AddNorm, add_norm, add_norm_stream
from addnorm.backends import BACKENDS
from addnorm.backends.eager import Eager
from addnorm.call import Call, describe, dropout_threshold
from addnorm.outputs import meets, overlaps, overlaps_itself

from .support.calls import routes
from .support.tolerance import same_bits

D, ROWS = 8, 3
ONES = torch.ones(ROWS, D)
NAN, INF = math.nan, math.inf

SHAPES = [
    (name, {name: torch.ones(shape)}, ValueError, rf"{name} has shape \({', ?'.join(map(str, shape))},?\)")
    for name, shape in [
        ("residual", (ROWS, D + 1)),
        ("residual", (D,)),
        ("residual", (1, D)),
        ("weight", (D + 1,)),
        ("weight", (1,)),
        ("weight", (1, D)),
        ("bias", (D - 1,)),
        ("branch_bias", (ROWS, D)),
        ("branch_scale", (2,)),
        ("branch_scale", (1,)),
        ("row_scale", (ROWS + 1,)),
        ("row_scale", (ROWS, 1)),
        ("row_scale", (1, ROWS)),
    ]
]
DTYPES = [
    (name, {name: torch.ones(shape, dtype=dtype)}, TypeError, f"{name} must be torch.float64.*got {dtype}")
    for name, shape in [("x", (ROWS, D)), ("residual", (ROWS, D)), ("weight", (D,)), ("row_scale", (ROWS,))]
    for dtype in (torch.int64, torch.complex64, torch.bool, torch.float8_e4m3fn)
]
DEVICES = [
    (name, {name: torch.ones(shape, device="meta")}, ValueError, f"{name} is on meta, x on cpu")
    for name, shape in [("residual", (ROWS, D)), ("weight", (D,)), ("bias", (D,)), ("branch_bias", (D,)),
                        ("branch_scale", ()), ("row_scale", (ROWS,))]
]  # fmt: skip
LAYOUTS = [
    ("sparse x", {"x": ONES.to_sparse()}, TypeError, "x must be a dense .* got torch.sparse_coo"),
    ("sparse residual", {"residual": ONES.to_sparse()}, TypeError, "residual must be a dense"),
    ("nested x", {"x": torch.nested.nested_tensor([ONES[0], ONES[0]], layout=torch.jagged)}, TypeError, "nested"),
    ("mkldnn x", {"x": ONES.to_mkldnn()}, TypeError, "x must be a dense"),
]
NUMBERS = [
    (f"{name}={value}"[:30], {name: value}, error, f"{name} must be")
    for name, value, error in [
        ("eps", -1e-9, ValueError), ("eps", NAN, ValueError), ("eps", INF, ValueError), ("eps", "1", TypeError),
        *((name, 10**400, ValueError) for name in ("eps", "residual_scale", "branch_scale", "weight_offset")),
        ("eps", None, TypeError), ("eps", True, TypeError), ("eps", torch.tensor(1e-5), TypeError),
        ("dropout_p", 1.0, ValueError), ("dropout_p", -0.1, ValueError), ("dropout_p", NAN, ValueError),
        ("dropout_p", "half", TypeError), ("dropout_p", None, TypeError),
        ("training", "no", TypeError), ("training", None, TypeError), ("training", 1, TypeError),
        ("residual_scale", NAN, ValueError), ("residual_scale", INF, ValueError), ("residual_scale", ONES, TypeError),
        ("branch_scale", NAN, ValueError), ("branch_scale", "1", TypeError), ("branch_scale", [1.0], TypeError),
        ("weight_offset", -INF, ValueError), ("weight_offset", 1j, TypeError),
        ("out_dtype", torch.int32, ValueError), ("out_dtype", "float32", TypeError),
        ("stream_dtype", torch.complex64, ValueError), ("stream_dtype", 32, TypeError),
    ]
]  # fmt: skip
OTHERS = [
    ("x is no tensor", {"x": [1.0, 2.0]}, TypeError, "x must be a torch.Tensor, got list"),
    ("x is another library's", {"x": np.ones((ROWS, D))}, TypeError, "x must be a torch.Tensor, got numpy.ndarray"),
    ("training is another's bool", {"training": np.False_}, TypeError, r"True or False, got numpy\.bool"),
    ("x is None", {"x": None}, TypeError, "x must be a torch.Tensor, got NoneType"),
    ("0-d x", {"x": torch.tensor(1.0), "residual": None}, ValueError, "x has no dimension"),
    ("residual is a number", {"residual": 1.0}, TypeError, "residual must be a torch.Tensor, got float"),
    ("row_scale is a number", {"row_scale": 1.0}, TypeError, "row_scale must be a torch.Tensor, got float"),
    ("row_scale with a last 1", {"row_scale": torch.ones(ROWS, 1)}, ValueError, r"which row_scale\.squeeze\(-1\) is"),
    ("weight is a list", {"weight": [1.0] * D}, TypeError, "weight must be a torch.Tensor, got list"),
    ("dropout off, p bad", {"dropout_p": 1.5, "training": False}, ValueError, r"dropout_p must be in .*got 1.5"),
    ("offset alone", {"weight_offset": 1.0}, ValueError, "weight_offset=1.0 is added to weight, but weight is None"),
    ("unknown norm", {"norm": "batch"}, ValueError, "norm='batch' is unknown; there are: 'layer', 'rms'"),
    ("norm of another type", {"norm": 3}, ValueError, "norm=3 is unknown"),
    ("seed is a float", {"seed": 1.0}, TypeError, "seed must be an int, an int64 tensor or None, got float"),
    ("seed is a bool", {"seed": True}, TypeError, "seed must be an int"),
    ("seed too large", {"seed": 2**63}, ValueError, "seed must fit in 64 bits"),
    ("seed too small", {"seed": -(2**63) - 1}, ValueError, "seed must fit in 64 bits"),
    ("seed of int32", {"seed": torch.tensor(1, dtype=torch.int32)}, TypeError, "seed must be one torch.int64"),
    ("many seeds", {"seed": torch.tensor([1, 2])}, TypeError, r"seed must be one torch.int64.*\(2,\)"),
    ("seed elsewhere", {"seed": torch.ones((), dtype=torch.int64, device="meta")}, ValueError, "seed is on meta"),
]  # fmt: skip
BAD = [*SHAPES, *DTYPES, *DEVICES, *LAYOUTS, *NUMBERS, *OTHERS]


class Untouchable(Eager):
    """Fails if a kernel runs."""

    def forward(self, call: Call, **options: Any) -> Any:
        raise AssertionError("a kernel ran")


@pytest.mark.parametrize(("label", "given", "error", "text"), BAD, ids=[f"{i}-{row[0]}" for i, row in enumerate(BAD)])
def test_bad_input_is_named(
    label: str, given: dict[str, Any], error: type[Exception], text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = {"x": ONES, "residual": ONES, "dropout_p": 0.5}
    arguments = {**good, **given}
    state = torch.get_rng_state()
    before = {k: v.clone() for k, v in arguments.items() if type(v) is Tensor and v.device.type == "cpu"}
    with monkeypatch.context() as patch:
        for name, backend in BACKENDS.items():
            patch.setattr(backend, "forward", Untouchable().forward)
            for function in (add_norm, add_norm_stream):
                with pytest.raises(error, match=text):
                    function(**arguments, backend=name)
        for function in (add_norm, add_norm_stream):
            with pytest.raises(error, match=text):
                function(**arguments)
    assert torch.equal(torch.get_rng_state(), state), "torch's generator was used before the error"
    for name, value in before.items():
        if value.layout == torch.strided and not value.is_nested:
            assert torch.equal(arguments[name], value)
    assert add_norm(**good).isfinite().all()


MEMORY = torch.zeros(4 * ROWS * D)


def view(offset: int, rows: int = ROWS, stride: int = D) -> Tensor:
    return MEMORY.as_strided((rows, D), (stride, 1), offset)


WINDOWS = torch.zeros(4 * ROWS + 4).unfold(0, D, 4)
with torch.inference_mode():
    INFERENCE = torch.ones(ROWS, D)
NEGATED = torch.ones(ROWS, D, dtype=torch.complex64).conj().imag

OUTS = [
    ("shape", {"out": torch.ones(ROWS, D + 1)}, r"out has shape \(3, 9\)"),
    ("dtype", {"out": ONES.double()}, "out has dtype torch.float64: this result has dtype torch.float32"),
    ("stream dtype", {"stream_out": ONES.half()}, "stream_out has dtype torch.float16"),
    ("device", {"out": ONES.to("meta")}, "out is on meta, x on cpu"),
    ("expanded", {"out": torch.ones(1, D).expand(ROWS, D)}, "out has strides .*share one place in memory"),
    ("windows", {"x": WINDOWS, "residual": None, "out": WINDOWS}, "out has strides .*share one place in memory"),
    ("overlaps x", {"x": view(0), "out": view(4)}, "out overlaps x in memory"),
    ("overlaps x by a row", {"x": view(0), "out": view(D)}, "out overlaps x in memory"),
    ("x transposed", {"x": torch.zeros(D, D), "residual": None}, "out overlaps x in memory"),
    ("overlaps weight", {"weight": MEMORY[4 : 4 + D], "out": view(0)}, "out overlaps weight in memory"),
    ("is weight", {"x": ONES[0], "residual": None, "weight": ONES[1], "out": ONES[1]}, "out overlaps weight in memory"),
    ("stream overlaps residual", {"residual": view(0), "stream_out": view(8)}, "stream_out overlaps residual"),
    ("both one", {"out": view(0), "stream_out": view(0)}, "out and stream_out overlap in memory"),
    ("both overlap", {"out": view(0), "stream_out": view(5)}, "out and stream_out overlap in memory"),
    ("gradient of x", {"x": ONES.clone().requires_grad_(), "out": ONES.clone()}, "out is for inference"),
    ("gradient of out", {"out": ONES.clone().requires_grad_()}, "out is for inference"),
    ("inference tensor", {"out": INFERENCE}, "out is an inference tensor"),
    ("negated view", {"out": NEGATED}, r"out is a view that negates what it writes \(is_neg\(\)\)"),
    ("negated stream", {"stream_out": NEGATED}, "stream_out is a view that negates"),
    ("gradient of weight", {"weight": torch.ones(D).requires_grad_(), "stream_out": ONES.clone()}, "stream_out is for"),
]


@pytest.mark.parametrize("backend", [*BACKENDS, None])
@pytest.mark.parametrize(("label", "given", "text"), OUTS, ids=[row[0] for row in OUTS])
def test_bad_out_is_named(
    backend: str | None, label: str, given: dict[str, Any], text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if backend is not None and not BACKENDS[backend].supports(describe(ONES)):
        pytest.skip(BACKENDS[backend].supports(describe(ONES)).reason)
    arguments: dict[str, Any] = {"x": ONES, "residual": ONES, "dropout_p": 0.5, **given}
    if label == "x transposed":
        arguments["out"] = arguments["x"].T
    state = torch.get_rng_state()
    with monkeypatch.context() as patch:
        for each in BACKENDS.values():
            patch.setattr(each, "forward", Untouchable().forward)
        with pytest.raises(ValueError, match=text):
            add_norm_stream(**arguments, backend=backend)
    assert torch.equal(torch.get_rng_state(), state)
    assert not MEMORY.any(), "out was written before the error"


def test_out_of_another_type_is_named() -> None:
    with pytest.raises(TypeError, match=r"out must be a torch\.Tensor, got list"):
        add_norm(ONES, out=[1.0])  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("backend", routes())
def test_views_that_share_storage_but_no_element_are_taken(backend: str | None) -> None:
    memory = torch.randn(ROWS, 4 * D)
    x, residual, out, stream_out = memory.split(D, dim=1)
    want = add_norm_stream(x.clone(), residual.clone(), backend=backend)
    add_norm_stream(x, residual, out=out, stream_out=stream_out, backend=backend)
    same_bits("out", out, want[0])
    same_bits("stream_out", stream_out, want[1])


def test_overlap_is_exact_for_equal_shapes_and_strides() -> None:
    """Against the sets of addresses themselves, for all small views of one memory."""
    memory = torch.zeros(60)
    views = [
        memory.as_strided((rows, 3), (stride, 1), offset)
        for rows in (1, 2, 4)
        for stride in (3, 5, 8)
        for offset in (0, 1, 2, 3, 4, 7, 11, 20)
    ]
    for a in views:
        for b in views:
            if (a.shape, a.stride()) == (b.shape, b.stride()):
                assert overlaps(a, b) == bool(addresses(a) & addresses(b))
            elif addresses(a) & addresses(b):
                assert overlaps(a, b)


def addresses(t: Tensor) -> set[int]:
    index = torch.arange(60).as_strided(t.shape, t.stride(), t.storage_offset())
    return set(index.flatten().tolist())


def test_what_does_not_overlap_itself_has_as_many_places_as_elements() -> None:
    for strides in itertools.product(range(9), repeat=3):
        t = torch.zeros(60).as_strided((2, 4, 3), strides)
        assert overlaps_itself(t) or len(addresses(t)) == t.numel()
    assert not any(overlaps_itself(t) for t in (ONES, ONES.T, ONES[:, ::3], ONES[:1].T, ONES.view(3, 1, 2, 4)[..., 1]))


def test_meets_is_a_sum_of_strides() -> None:
    dims = [(20, 3), (6, 2), (1, 4)]
    reachable = {i * 20 + j * 6 + k for i in range(-2, 3) for j in range(-1, 2) for k in range(-3, 4)}
    assert {delta for delta in range(-80, 81) if meets(delta, dims)} == reachable


@pytest.mark.parametrize(("p", "threshold"), [(0.0, 0), (1e-6, 0), (0.1, 6554), (0.5, 32768), (0.999999, 65535)])
def test_dropout_threshold(p: float, threshold: int) -> None:
    assert dropout_threshold(p) == threshold


def test_describe_fills_in_what_was_left_out() -> None:
    call = describe(
        ONES.bfloat16(), ONES, row_scale=torch.ones(1), branch_scale=2, dropout_p=0.5, training=False, seed=3
    )
    assert (call.out_dtype, call.stream_dtype, call.compute_dtype) == (torch.float32,) * 3
    assert call.row_scale is not None
    assert call.row_scale.shape == (ROWS,)
    assert call.branch_scale is not None
    assert call.branch_scale.item() == 2
    assert call.dropout_p == 0
    assert call.seed is None
    with pytest.raises(AttributeError):
        call.eps = 1.0  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"norm": "batch"}, "norm='batch' is unknown"),
        ({"eps": -1.0}, "eps must be"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\)"),
        ({"drop_path": -0.5}, r"drop_path must be in \[0, 1\)"),
        ({"residual_scale": NAN}, "residual_scale must be"),
        ({"weight_offset": 1.0, "affine": False}, "weight_offset=1.0 is added to weight, but affine is False"),
    ],
)
def test_module_refuses_at_once(given: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        AddNorm(D, **given)
