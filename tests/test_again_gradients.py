"""Training by plans: the recorded forward, its backward and the operators give what plain torch gives, call after call
of every other kind, and take a plan wherever there is one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils.checkpoint import checkpoint

from addnorm import add_norm, add_norm_stream
from addnorm.backends.native import EXTENSION
from addnorm.call import OPERANDS

from .support.planning import Planning, planning

pytestmark = pytest.mark.skipif(EXTENSION is None, reason="the C++ extension is not built")
ROWS, D = 4, 16


@pytest.fixture
def backend() -> Iterator[Planning]:
    with planning() as found:
        yield found


def operands(dtype: torch.dtype = torch.float32, **given: Tensor) -> dict[str, Tensor]:
    plain = {"x": (ROWS, D), "residual": (ROWS, D), "weight": (D,), "bias": (D,)}
    return {name: torch.randn(shape, dtype=dtype) for name, shape in plain.items()} | given


def leaves(found: dict[str, Tensor], frozen: str = "") -> dict[str, Tensor]:
    return {name: t.detach().requires_grad_(name not in frozen.split()) for name, t in found.items()}


def train(backend: str, found: dict[str, Tensor], grads: tuple[Tensor | None, ...], **options: Any) -> list[Tensor]:
    """The results and the gradients of the operands."""
    results = add_norm_stream(**found, **options, backend=backend)
    kept = [(r, g) for r, g in zip(results, grads, strict=True) if g is not None]
    wanted = [t for t in found.values() if t.requires_grad]
    arrived = torch.autograd.grad([r for r, _ in kept], wanted, [g for _, g in kept], materialize_grads=True)
    return [*(r.detach() for r in results), *arrived]


def assert_same(one: list[Tensor], other: list[Tensor]) -> None:
    for a, b in zip(one, other, strict=True):
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        assert torch.equal(a, b)


def both(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    return torch.randn(ROWS, D).to(dtype), torch.randn(ROWS, D).to(dtype)


BF16 = torch.bfloat16
VECTOR = torch.randn(D)
KINDS: dict[str, Callable[[], tuple[dict[str, Tensor], tuple[Tensor | None, ...], dict[str, Any]]]] = {
    "plain": lambda: (leaves(operands()), both(), {}),
    "another dtype": lambda: (leaves(operands(BF16)), both(BF16), {}),
    "mixed dtypes": lambda: (leaves(operands(x=torch.randn(ROWS, D).to(BF16))), both(), {}),
    "parameters of another dtype": lambda: (leaves(operands(weight=VECTOR.to(BF16))), both(), {}),
    "another shape": lambda: (
        leaves(operands(x=torch.randn(2, 2, D), residual=torch.randn(2, 2, D))),
        (torch.randn(2, 2, D), torch.randn(2, 2, D)), {},
    ),
    "other needs": lambda: (leaves(operands(), "weight"), both(), {}),
    "only x": lambda: (leaves(operands(), "residual weight bias"), both(), {}),
    "only the bias": lambda: (leaves(operands(), "x residual weight"), both(), {}),
    "only dy": lambda: (leaves(operands()), (torch.randn(ROWS, D), None), {}),
    "only ds": lambda: (leaves(operands()), (None, torch.randn(ROWS, D)), {}),
    "a strided gradient": lambda: (leaves(operands()), (torch.randn(D, ROWS).t(), torch.randn(ROWS, D)), {}),
    "an expanded gradient": lambda: (leaves(operands()), (torch.ones(()).expand(ROWS, D), torch.randn(ROWS, D)), {}),
    "an unaligned gradient": lambda: (
        leaves(operands()), (torch.randn(ROWS * D + 1)[1:].view(ROWS, D), torch.randn(ROWS, D)), {},
    ),
    "a strided operand": lambda: (leaves(operands(residual=torch.randn(D, ROWS).t())), both(), {}),
    "an unaligned operand": lambda: (leaves(operands(weight=torch.randn(D + 1)[1:])), both(), {}),
    "rms": lambda: (leaves(operands()), both(), {"norm": "rms"}),
    "another eps": lambda: (leaves(operands()), both(), {"eps": 1}),
    "another scale": lambda: (leaves(operands()), both(), {"residual_scale": 2.0}),
    "an offset": lambda: (leaves(operands()), both(), {"weight_offset": 1.0}),
    "no residual": lambda: (leaves({"x": torch.randn(ROWS, D)}), both(), {}),
    "dropout": lambda: (leaves(operands()), both(), {"dropout_p": 0.5}),
    "less dropout": lambda: (leaves(operands()), both(), {"dropout_p": 0.25}),
    "dropout that is off": lambda: (leaves(operands()), both(), {"dropout_p": 0.5, "training": False}),
    "a seed": lambda: (leaves(operands()), both(), {"dropout_p": 0.5, "seed": 3}),
    "y in another dtype": lambda: (leaves(operands()), (both(BF16)[0], both()[1]), {"out_dtype": BF16}),
    "the stream in another dtype": lambda: (leaves(operands()), (both()[0], both(BF16)[1]), {"stream_dtype": BF16}),
    "every operand": lambda: (
        leaves(operands(branch_bias=VECTOR, branch_scale=torch.randn(D), row_scale=torch.randn(ROWS))), both(), {},
    ),
    "a 0-d scale": lambda: (leaves(operands(branch_scale=torch.tensor(0.5))), both(), {}),
    "a row scale that is spread": lambda: (leaves(operands(row_scale=torch.tensor([0.5]))), both(), {}),
    "x twice": lambda: (leaves(operands()), both(), {}),
}  # fmt: skip


def test_every_kind_after_every_other_is_what_plain_torch_gives(backend: Planning) -> None:
    """Twice, so that each has seen the plans of all others."""
    for _ in range(2):
        for kind, make in KINDS.items():
            found, grads, options = make()
            if kind == "x twice":
                found["residual"] = found["x"]
            torch.manual_seed(0)
            want = train("eager", found, grads, **options)
            torch.manual_seed(0)
            try:
                assert_same(train("planning", found, grads, **options), want)
            except Exception as error:
                raise AssertionError(kind) from error


WITHOUT_FORWARD = {"a strided operand", "an unaligned operand", "a seed", "a row scale that is spread"}
WITHOUT_BACKWARD = {
    "a strided gradient", "an expanded gradient", "an unaligned gradient", "an unaligned operand",
    "a row scale that is spread",
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_a_call_like_an_earlier_one_is_only_launched(backend: Planning, kind: str) -> None:
    expected = (kind not in WITHOUT_FORWARD) + (kind not in WITHOUT_BACKWARD)
    for _ in range(3):
        found, grads, options = KINDS[kind]()
        train("planning", found, grads, **options)
    assert (backend.made, backend.taken) == (expected, 3 * expected)


def test_the_generator_moves_as_it_does_without_plans(backend: Planning) -> None:
    """From the first call on, which makes the plan; and an error moves nothing."""
    states = []
    for name in ("eager", "planning"):
        torch.manual_seed(1)
        for _ in range(3):
            add_norm(**leaves(operands()), dropout_p=0.5, backend=name)
            with pytest.raises(ValueError, match="bias has shape"):
                add_norm(**operands() | {"bias": torch.ones(3)}, dropout_p=0.5, backend=name)
        torch.manual_seed(1)
        x = operands()["x"]
        states.append([add_norm(x, dropout_p=0.5, backend=name) for _ in range(3)])
    assert_same(*states)
    assert not torch.equal(states[0][0], states[0][1])


def test_a_replaced_weight_is_the_one_that_is_read(backend: Planning) -> None:
    layer = torch.nn.LayerNorm(D)
    for _ in range(3):
        layer.weight = torch.nn.Parameter(torch.randn(D))
        found = leaves(operands()) | {"weight": layer.weight}
        grads = both()
        assert_same(train("planning", found, grads), train("eager", found, grads))
    assert backend.taken == 6


def test_a_weight_changed_in_place_before_the_backward_is_refused(backend: Planning) -> None:
    for _ in range(2):
        found = leaves(operands())
        y = add_norm(**found, backend="planning")
        with torch.no_grad():
            found["weight"].add_(1)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            y.sum().backward()


def test_grad_mode_is_part_of_the_kind(backend: Planning) -> None:
    found = leaves(operands())
    for _ in range(2):
        assert add_norm(**found, backend="planning").requires_grad
        with torch.no_grad():
            assert not add_norm(**found, backend="planning").requires_grad
        with torch.inference_mode():
            assert add_norm(**found, backend="planning").is_inference()
            with torch.enable_grad():
                assert not add_norm(**found, backend="planning").requires_grad
    assert backend.taken == 8


@pytest.mark.parametrize("order", [(False, True), (True, False)])
def test_frozen_and_trained_operands_have_plans_of_their_own(backend: Planning, order: tuple[bool, bool]) -> None:
    for _ in range(2):
        for trained in order:
            found = {name: t.requires_grad_(trained) for name, t in operands().items()}
            assert add_norm(**found, backend="planning").requires_grad == trained
    assert backend.taken == 4


def test_hooks_see_what_passes(backend: Planning) -> None:
    """On tensors, on saved tensors and on the node; what a hook unpacks is looked at like any other tensor."""
    seen: list[Any] = []

    def unpack(t: Tensor) -> Tensor:
        return t.t().contiguous().t() if t.dim() == 2 else t.clone()

    for _ in range(2):
        found, grads = leaves(operands()), both()
        want = train("eager", found, grads)
        with torch.autograd.graph.saved_tensors_hooks(lambda t: seen.append(t) or t, unpack):
            assert_same(train("planning", found, grads), want)
        y, stream = add_norm_stream(**found, backend="planning")
        y.register_hook(lambda g: seen.append(g) or 2 * g)
        y.grad_fn.register_prehook(lambda gs: seen.append(gs[0]))  # type: ignore[union-attr]
        doubled = torch.autograd.grad([y, stream], list(found.values()), [grads[0], 2 * grads[1]])
        for a, b in zip(doubled, want[2:], strict=True):
            torch.testing.assert_close(a, 2 * b)
    assert len(seen) == 2 * (3 + 2)  # z, the statistics and the weight are saved; one hook each on y and its node


def test_what_is_above_a_first_derivative_goes_the_ordinary_way(backend: Planning) -> None:
    found = leaves(operands())
    for _ in range(2):
        taken = backend.taken
        y = add_norm(**found, backend="planning")
        (dx,) = torch.autograd.grad(y.pow(2).sum(), found["x"], create_graph=True)
        assert dx.requires_grad
        torch.autograd.grad(dx.pow(2).sum(), found["x"])
        assert backend.taken == taken + 2  # the forward, and its backward that nothing differentiates
        y = add_norm(**found, backend="planning")
        torch.autograd.grad(y, found["x"], torch.randn(3, ROWS, D), is_grads_batched=True)
        assert backend.taken == taken + 3


def test_checkpoints_replay_the_dropout(backend: Planning) -> None:
    found = leaves(operands())

    def call(x: Tensor) -> Tensor:
        return (
            add_norm(x, **{k: v for k, v in found.items() if k != "x"}, dropout_p=0.5, backend="planning").pow(2).sum()
        )

    for reentrant in (False, True):
        grads = []
        for carry_out in (call, lambda x, r=reentrant: checkpoint(call, x, use_reentrant=r)):
            torch.manual_seed(1)
            carry_out(found["x"]).backward()
            grads.append(found["x"].grad)
            found["x"].grad = None
        assert torch.equal(*grads)


class Name(str):
    """As a string of numpy's is one."""


def test_a_name_of_another_type_is_recorded(backend: Planning) -> None:
    found, grads = leaves(operands()), both()
    for norm in ("layer", "rms"):
        want = train("eager", found, grads, norm=norm)
        assert_same(train("planning", found, grads, norm=Name(norm)), want)


@pytest.mark.filterwarnings("ignore:.*is deprecated:DeprecationWarning:torch.*")  # what dual tensors import
def test_where_a_tangent_was_there_is_none(backend: Planning) -> None:
    """Once its level has ended; the tensor, and a buffer that took it, keep an empty place for it."""
    bias = torch.zeros(D)
    with forward_ad.dual_level():
        bias.copy_(forward_ad.make_dual(torch.ones(D), torch.ones(D)))
        x = forward_ad.make_dual(torch.randn(ROWS, D), torch.ones(ROWS, D))
    found, grads = operands(x=x, bias=bias), both()
    found["weight"].requires_grad_()
    for options in ({}, {"dropout_p": 0.5, "seed": 1}):  # with a plan and without one
        want = train("eager", found, grads, **options)
        for _ in range(2):
            assert_same(train("planning", found, grads, **options), want)


def test_a_second_backward_is_refused(backend: Planning) -> None:
    found = leaves(operands())
    y = add_norm(**found, backend="planning").sum()
    y.backward()
    with pytest.raises(RuntimeError, match="second time"):
        y.backward()


# -- the operators -----------------------------------------------------------------------------------------

FORWARD, BACKWARD = torch.ops.addnorm.forward, torch.ops.addnorm.backward


def test_the_operators_have_plans_too(backend: Planning) -> None:
    """By the dispatcher and past it, with any of the arguments at their default."""
    found = list(operands().values())
    grads, needs = both(), [True] * 4 + [False] * 3
    with torch.no_grad():
        y, z, stats = FORWARD(*found, True, True, backend="eager")
        want = BACKWARD(*grads, z, stats, needs, found[2], backend="eager")
        for op_f, op_b in ((FORWARD, BACKWARD), (FORWARD.default, BACKWARD.default)):
            for _ in range(2):
                assert_same(list(op_f(*found, True, True, backend="planning")), [y, z, stats])
                got = op_b(*grads, z, stats, needs, found[2], backend="planning")
                assert_same(list(got), list(want))
    assert (backend.made, backend.taken) == (2, 8)


def test_an_operator_that_keeps_less_has_another_plan(backend: Planning) -> None:
    found = list(operands().values())
    for stream, stats in ((True, True), (True, False), (False, True), (False, False)):
        for _ in range(2):
            y, z, kept = FORWARD.default(*found, stream, stats, backend="planning")
            assert (y.numel(), z.numel() > 0, kept.numel() > 0) == (ROWS * D, stream, stats)
    assert (backend.made, backend.taken) == (4, 8)


@pytest.mark.parametrize(
    "changes",
    [{"weight": torch.ones(D - 1)}, {"residual": torch.ones(ROWS - 1, D)}, {"residual": torch.ones(D, ROWS - 1).T}],
)  # the last has no plan
def test_a_forward_operator_refuses_what_would_be_read_past_the_end(backend: Planning, changes: Any) -> None:
    FORWARD.default(*operands().values(), True, True, backend="planning")
    for op in (FORWARD, FORWARD.default):
        with pytest.raises(ValueError, match=f"{next(iter(changes))} has shape"):
            op(*(operands() | changes).values(), True, True, backend="planning")


@pytest.mark.parametrize(
    "changes", [{"dy": torch.ones(ROWS - 1, D)}, {"stats": torch.ones(ROWS, 1)}, {"weight": torch.ones(D - 1)},
                {"row_scale": torch.ones(1)}, {"ds": torch.ones(ROWS, D, dtype=torch.int64)},
                {"dy": torch.ones(D, ROWS - 1).T}],  # which has no plan
)  # fmt: skip
def test_a_backward_operator_refuses_what_would_be_read_past_the_end(backend: Planning, changes: Any) -> None:
    given = {"dy": both()[0], "ds": None, "z": both()[0], "stats": torch.ones(ROWS, 3), "needs": [True] + [False] * 6,
             "weight": torch.ones(D)}  # fmt: skip
    with torch.no_grad():
        BACKWARD.default(**given, backend="planning")
        with pytest.raises((TypeError, ValueError), match=next(iter(changes))):
            BACKWARD.default(**given | changes, backend="planning")


def test_a_compiled_step_takes_plans(backend: Planning) -> None:
    torch._dynamo.reset()

    def step(**found: Tensor) -> Tensor:
        return add_norm_stream(**found, backend="planning")[0].pow(2).sum()

    compiled = torch.compile(step, backend="aot_eager", fullgraph=True)
    for _ in range(3):
        found = leaves(operands())
        want = torch.autograd.grad(step(**found), list(found.values()))
        taken = backend.taken
        assert_same(list(torch.autograd.grad(compiled(**found), list(found.values()))), list(want))
        assert backend.taken == taken + 2
    assert list(OPERANDS[:4]) == list(found)
