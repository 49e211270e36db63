"""The short way of a call like an earlier one: what may take it, and that its errors are the ordinary ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from addnorm import add_norm, add_norm_stream, norms, ops, plain
from addnorm import again as short
from addnorm.backends.native import EXTENSION

from .support.planning import Planning, planning

D = 16


@pytest.fixture
def backend() -> Iterator[Planning]:
    with planning() as found, torch.no_grad():
        yield found


def call(*tensors: Tensor, **options: Any) -> Tensor:
    return add_norm(*tensors, **options, backend="planning")


def rows(count: int = 4) -> Tensor:
    return torch.randn(count, D)


def test_a_call_is_planned_once_and_checked_once(backend: Planning) -> None:
    for _ in range(3):
        x = rows()
        assert torch.equal(call(x), add_norm(x, backend="eager"))
        assert torch.equal(add_norm_stream(x, x, backend="planning")[1], x + x)
    assert (backend.made, backend.taken) == (2, 6)


@pytest.mark.parametrize(
    "other",
    [
        lambda: call(rows(5), rows(5)),
        lambda: call(rows().bfloat16(), rows()),
        lambda: call(rows(), rows().bfloat16()),
        lambda: call(rows()),
        lambda: call(rows(), rows(), torch.ones(D)),
        lambda: call(rows(), rows(), branch_bias=torch.ones(D)),
        lambda: call(rows(), rows(), branch_scale=torch.ones(D)),
        lambda: call(rows(), rows(), branch_scale=torch.tensor(1.0)),
        lambda: call(rows(), rows(), row_scale=torch.ones(4)),
        lambda: call(rows(), rows(), norm="rms"),
        lambda: call(rows(), rows(), eps=1e-6),
        lambda: call(rows(), rows(), residual_scale=2.0),
        lambda: call(rows(), rows(), dropout_p=0.5),
        lambda: call(rows(), rows(), training=False),
        lambda: call(rows(), rows(), out_dtype=torch.float64),
        lambda: call(rows(), rows(), stream_dtype=torch.float64),
        lambda: call(torch.randn(2, 2, D), torch.randn(2, 2, D)),
    ],
)
def test_another_kind_of_call_has_another_plan(backend: Planning, other: Callable[[], Tensor]) -> None:
    call(rows(), rows())
    other()
    other()
    assert backend.made == 2


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"residual_scale": True}, "residual_scale must be a number, got bool"),
        ({"weight_offset": False}, "weight_offset must be a number, got bool"),
        ({"eps": [1e-5]}, "eps must be a number, got list"),
        ({"dropout_p": 1.0, "training": False}, r"dropout_p must be in \[0, 1\), got 1.0"),
        ({"norm": "batch"}, "norm='batch' is unknown"),
        ({"training": 1}, "training must be True or False, got int"),
        ({"bias": torch.ones(1, D)}, "bias has shape"),
        ({"weight": torch.ones(D).to_sparse()}, "weight must be a dense"),
        ({"weight": "nested"}, "weight must be a dense"),
        ({"residual": torch.ones(4, D, dtype=torch.int64)}, "residual must be torch.float64"),
        ({"residual": torch.ones(4, D, device="meta")}, "residual is on meta"),
        ({"x": 3}, "x must be a torch.Tensor"),
    ],
)
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.usefixtures("backend")
def test_errors_are_the_ordinary_ones(options: dict[str, Any], error: str) -> None:
    if options == {"weight": "nested"}:
        options = {"weight": torch.nested.nested_tensor([torch.ones(1)])}  # which warns
    plain = {"x": rows(), "residual": rows(), "weight": torch.ones(D), "bias": torch.ones(D)}
    add_norm(**plain, backend="planning")
    add_norm(**plain, residual_scale=1, weight_offset=0, eps=1, backend="planning")
    for _ in range(2):
        with pytest.raises((TypeError, ValueError), match=error):
            add_norm(**{**plain, **options}, backend="planning")


@pytest.mark.parametrize("recorded", [False, True])
def test_a_profile_shows_the_operators(recorded: bool) -> None:
    """The first call and one that is launched like it, past the dispatcher, which names the operators."""
    with planning() as backend, torch.set_grad_enabled(recorded):
        x = rows().requires_grad_(recorded)
        for taken in (1, 2):
            with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
                y = call(x, x)
            assert backend.taken == taken
            assert "addnorm::forward" in {event.key for event in profile.key_averages()}
        if recorded:
            with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
                y.sum().backward()
            assert "addnorm::backward" in {event.key for event in profile.key_averages()}


SEEN: set[str] = set()


class Function(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        SEEN.add(str(func))
        return func(*args, **(kwargs or {}))


class Dispatched(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        SEEN.add(str(func).removesuffix(".default"))
        return func(*args, **(kwargs or {}))


class Sub(Tensor):
    pass


@pytest.mark.parametrize("watching", [Function, Dispatched, torch.inference_mode, nullcontext])
@pytest.mark.usefixtures("backend")
def test_what_watches_sees_the_operator(watching: Any) -> None:
    for _ in range(2):
        SEEN.clear()
        with watching():
            call(rows(), rows())
        assert ("addnorm.forward" in SEEN) == (watching in (Function, Dispatched))


@pytest.mark.parametrize("name", ["planning", None])
def test_below_autograd_nothing_is_recorded(name: str | None) -> None:
    """As of torch's own operations in ``__torch_dispatch__``, where grad mode is on and tensors want a gradient."""
    found: list[tuple[bool, bool]] = []

    class Normalised(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            results = (args[0], args[0] * 2, add_norm(args[0], backend=name))
            found.extend((t.requires_grad, torch.is_grad_enabled()) for t in results)
            return func(*args, **(kwargs or {}))

    with planning() as backend:
        for taken in (1, 2):
            found.clear()
            x = rows().requires_grad_()
            with Normalised():
                x * 2
            assert found == [(True, True), (False, True), (False, True)]
            assert backend.taken == (taken if name else 0)


def test_under_autocast_there_are_other_plans(backend: Planning) -> None:
    call(rows(), rows())
    torch.set_autocast_enabled("cuda", True)  # torch.autocast leaves it off where there is no GPU
    try:
        call(rows(), rows())
    finally:
        torch.set_autocast_enabled("cuda", False)
    assert (backend.made, backend.taken) == (2, 2)


def test_transforms_go_the_ordinary_way(backend: Planning) -> None:
    call(rows())
    with pytest.raises(ValueError, match="transforms"), forward_ad.dual_level():
        call(rows())
    with pytest.raises(ValueError, match="transforms"):
        torch.func.vmap(call)(rows()[None])
    assert backend.taken == 1


@pytest.mark.parametrize(
    "odd",
    [
        lambda: torch.randn(D, 4).t(),
        lambda: torch.randn(4 * D + 1)[1:].view(4, D),
        lambda: torch._neg_view(rows()),
        lambda: torch._efficientzerotensor((4, D)),
        lambda: rows().as_subclass(Sub),
        lambda: torch.randn(0, D),
    ],
    ids=["strided", "unaligned", "negative", "zero", "subclass", "empty"],
)
@pytest.mark.usefixtures("backend")
def test_odd_tensors_go_the_ordinary_way(odd: Callable[[], Tensor]) -> None:
    x, zeros = odd(), torch.zeros(len(odd()), D)
    want, swapped = add_norm(x, zeros, backend="eager"), add_norm(zeros, x, backend="eager")
    assert short.find((x, zeros), None, lambda: pytest.fail("is planned")) is None
    for _ in range(2):
        assert torch.equal(call(x, zeros), want)
        assert torch.equal(call(zeros, x), swapped)


def test_results_that_are_given_and_policies_go_the_ordinary_way(backend: Planning) -> None:
    x = rows()
    call(x, x, out=torch.empty_like(x))
    call(x, x, norm=norms.DyT(torch.tensor(1.0)))
    call(x, x, seed=1)
    call(x, x, branch_scale=0.5)
    assert backend.taken == 0


def test_plans_are_bounded(backend: Planning, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(short, "MOST", 3)
    for count in range(1, 9):
        call(rows(count))
    assert len(short.PLANS) <= 3


@pytest.mark.parametrize("odd", [lambda x: torch._neg_view(x), lambda x: x.as_subclass(Sub)])
def test_what_is_not_plain_is_seen_by_the_dispatcher(odd: Callable[[Tensor], Tensor]) -> None:
    assert ops.unwatched("triton", (rows(), None))
    assert not ops.unwatched("triton", (rows(), odd(rows())))
    assert not ops.unwatched("triton", (torch._efficientzerotensor((4, D)),))


KINDS = [plain.kinds, *([EXTENSION.kinds] if EXTENSION else [])]


@pytest.mark.parametrize("kinds", KINDS, ids=["python", "C++"][: len(KINDS)])
def test_tensors_of_another_kind_differ(kinds: Any) -> None:
    many = [
        (), (None,), (None, None), (rows(),), (rows(), None), (None, rows()), (rows(5),), (rows().bfloat16(),),
        (rows().half(),), (rows(8).view(4, 2 * D),), (rows().view(2, 2, D),), (rows().view(-1),), (torch.tensor(1.0),),
        (torch.tensor(1),), (torch.ones(1),), (rows().requires_grad_(),), (rows(), rows()), (torch.ones(D, D), rows()),
    ]  # fmt: skip
    found = [kinds(tensors) for tensors in many]
    assert len({kind for kind, _ in found}) == len(many)
    for tensors, (_, addresses) in zip(many, found, strict=True):
        assert addresses == [None if t is None else t.data_ptr() for t in tensors]
    x = torch.nn.Parameter(rows())
    assert kinds((x, rows()))[0] == kinds((rows().requires_grad_(), rows()))[0]


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("kinds", KINDS, ids=["python", "C++"][: len(KINDS)])
def test_what_no_address_stands_for_has_no_kind(kinds: Any) -> None:
    odd = [
        rows().t(), torch.randn(4 * D + 1)[1:], torch._neg_view(rows()), torch._efficientzerotensor((4, D)),
        rows().as_subclass(Sub), torch.randn(0, D), rows().to_sparse(), torch.ones(3, device="meta"), 1.0, "x",
        torch.nested.nested_tensor([torch.ones(1)]), torch._to_functional_tensor(rows()),
    ]  # fmt: skip
    for t in odd:
        assert kinds((rows(), t)) is None, t
    torch.func.vmap(lambda x: kinds((x,)) is None or pytest.fail("batched"), out_dims=None)(rows())
