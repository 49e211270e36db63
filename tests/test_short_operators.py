"""The operators as compiled graphs call them: plain calls go past the dispatcher and give the same bits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from addnorm.backends.native import EXTENSION

from .support.cases import Case
from .test_ops import CASES, backward_arguments, call_of, forward_arguments

pytestmark = pytest.mark.skipif(EXTENSION is None, reason="the C++ extension is not built")

FORWARD, BACKWARD = torch.ops.addnorm.forward, torch.ops.addnorm.backward


class DispatchedError(Exception):
    """The call went on to the dispatcher."""


@pytest.fixture
def only_short() -> Iterator[None]:
    """The dispatcher is out of reach."""

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise DispatchedError

    assert EXTENSION is not None
    overloads = [torch._C._get_operation_overload(f"addnorm::{name}", "")[0] for name in ("forward", "backward")]
    EXTENSION.set_dispatched(refuse, refuse)
    yield
    EXTENSION.set_dispatched(*overloads)


def plain_forward() -> tuple[Tensor, Tensor, Tensor, Tensor, bool, bool]:
    return torch.randn(2, 3, 8), torch.randn(2, 3, 8), torch.randn(8), torch.randn(8), True, True


def by_name(arguments: list[Any], schema: Any, first: int) -> tuple[list[Any], dict[str, Any]]:
    names = [argument.name for argument in schema.arguments]
    return arguments[:first], dict(zip(names[first:], arguments[first:], strict=True))


def assert_same(one: tuple[Tensor, ...], other: tuple[Tensor, ...]) -> None:
    for a, b in zip(one, other, strict=True):
        assert (a.dtype, a.shape, a.stride()) == (b.dtype, b.shape, b.stride())
        assert torch.equal(a.nan_to_num(), b.nan_to_num())


@pytest.mark.parametrize("backend", ["cpu", None])
@pytest.mark.parametrize("named", [0, 3, 6, 99])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_forward_gives_the_same_bits(case: Case, named: int, backend: str | None) -> None:
    for stream, stats in ((True, True), (True, False), (False, False)):
        arguments = forward_arguments(call_of(case), stream, stats, backend)  # type: ignore[arg-type]
        first, rest = by_name(arguments, FORWARD.default._schema, named)
        assert_same(FORWARD.default(*first, **rest), FORWARD(*arguments))


@pytest.mark.parametrize("named", [0, 6, 99])
@pytest.mark.parametrize("case", CASES, ids=str)
@torch.no_grad()
def test_backward_gives_the_same_bits(case: Case, named: int) -> None:
    there = [t is not None for t in call_of(case).operands.values()]
    for needs in (there, [n and i % 2 == 0 for i, n in enumerate(there)]):
        arguments = backward_arguments(case, "cpu", needs)
        first, rest = by_name(arguments, BACKWARD.default._schema, named)
        assert_same(BACKWARD.default(*first, **rest), BACKWARD(*arguments))


def test_a_plain_call_does_not_reach_the_dispatcher(only_short: None) -> None:
    y, z, stats = FORWARD.default(*plain_forward())
    with torch.no_grad():
        grads = BACKWARD.default(torch.ones_like(y), None, z, stats, [True] * 4 + [False] * 3, torch.ones(8))
    assert [g.numel() for g in grads] == [48, 48, 8, 8, 0, 0, 0]
    with torch.inference_mode():
        FORWARD.default(*plain_forward(), norm="rms", eps=0.5)


def watched_forward() -> list[tuple[str, Callable[[], object]]]:
    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            return func(*args, **(kwargs or {}))

    class Own(Tensor):
        pass

    x, residual, weight, bias, *switches = plain_forward()

    def watched() -> None:
        with Watch():
            FORWARD.default(x, residual, weight, bias, *switches)

    def fake() -> None:
        with FakeTensorMode() as mode:
            FORWARD.default(*map(mode.from_tensor, (x, residual, weight, bias)), *switches)

    needs_seed = {"dropout_p": 0.5}
    calls: dict[str, Callable[[], object]] = {
        "a gradient": lambda: FORWARD.default(x, residual, weight.clone().requires_grad_(), bias, *switches),
        "a mode": watched,
        "fake tensors": fake,
        "vmap": lambda: torch.vmap(lambda row: FORWARD.default(row, None, weight, bias, *switches))(x),
        "a subclass": lambda: FORWARD.default(x.as_subclass(Own), residual, weight, bias, *switches),
        "a negative view": lambda: FORWARD.default(torch._neg_view(x), residual, weight, bias, *switches),
        "too few": lambda: FORWARD.default(x, residual, weight),
        "an unknown name": lambda: FORWARD.default(x, residual, weight, bias, *switches, axis=1),
        "twice": lambda: FORWARD.default(x, residual, weight, bias, *switches, x=x),
        "a number as text": lambda: FORWARD.default(x, residual, weight, bias, *switches, eps="1"),
        "an int seed": lambda: FORWARD.default(x, residual, weight, bias, *switches, seed=3, **needs_seed),
        "a backward that autograd may record": lambda: BACKWARD.default(
            x, None, residual, torch.ones(2, 3, 2), [True] + [False] * 6, weight
        ),
    }
    return list(calls.items())


@pytest.mark.parametrize(("what", "call"), watched_forward(), ids=lambda value: value if isinstance(value, str) else "")
def test_what_is_not_plain_goes_on(what: str, call: Callable[[], object], only_short: None) -> None:
    with pytest.raises(DispatchedError):
        call()


def test_another_backend_is_called_in_python(only_short: None) -> None:
    x, residual, weight, bias, *switches = plain_forward()
    y, z, stats = FORWARD.default(x, residual, weight, bias, *switches, backend="eager")
    with torch.no_grad():
        grads = BACKWARD.default(torch.ones_like(y), None, z, stats, [True] + [False] * 6, weight, backend="eager")
    assert [g.numel() for g in grads] == [48, 0, 0, 0, 0, 0, 0]


def test_the_dispatcher_says_what_is_wrong() -> None:
    x, residual, weight, bias, *switches = plain_forward()
    with pytest.raises(RuntimeError, match="Unknown keyword argument 'axis'"):
        FORWARD.default(x, residual, weight, bias, *switches, axis=1)
    with pytest.raises(RuntimeError, match="missing value for argument 'bias'"):
        FORWARD.default(x, residual, weight)
    with pytest.raises(RuntimeError, match=r"shape \[3\] where \[8\]"):
        FORWARD.default(x, residual, torch.ones(3), bias, *switches)
    with pytest.raises(RuntimeError, match=r"shape \[2, 8\] where \[2, 3, 8\]"):
        FORWARD.default(x, residual[:, 0], weight, bias, *switches)
    with torch.no_grad(), pytest.raises(RuntimeError, match=r"shape \[3\] where \[8\]"):
        BACKWARD.default(x, None, x, torch.ones(2, 3, 2), [True] + [False] * 6, torch.ones(3))


def test_a_name_that_is_no_constant_is_understood() -> None:
    arguments = plain_forward()
    name = "".join(["e", "p", "s"])  # equal to the schema's, not the same object
    assert_same(FORWARD.default(*arguments, **{name: 0.5}), FORWARD(*arguments, eps=0.5))


def test_a_gradient_is_recorded() -> None:
    x, residual, weight, bias, *switches = plain_forward()
    y, z, stats = FORWARD.default(x, residual, weight.requires_grad_(), bias, *switches)
    assert (y.requires_grad, z.requires_grad, stats.requires_grad) == (True, True, False)


def test_the_profiler_sees_it(only_short: None) -> None:
    with torch.profiler.profile() as profile:
        FORWARD.default(*plain_forward())
    assert "addnorm::forward" in {event.key for event in profile.key_averages()}


def test_any_layout_is_taken() -> None:
    """What lets Inductor pass operands as they lie, and only the arguments that a graph has."""
    for operator in (FORWARD, BACKWARD, torch.ops.addnorm.forward_out):
        assert torch.Tag.flexible_layout in operator.default.tags
