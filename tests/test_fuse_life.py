"""What a fused or inspected model meets between its calls: hooks, transforms, replicas, and its end."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from torch import Tensor, nn

from addnorm import Monitor, inspect
from addnorm.fusing import fuse

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:torch.*"),  # Inductor's own imports
    pytest.mark.filterwarnings("ignore:.*is deprecated:FutureWarning:torch.*"),
    pytest.mark.filterwarnings("ignore:addnorm.fuse found nothing"),  # in mode "modules": the norm is a narrow one
]


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mix, self.norm = nn.Linear(16, 16), nn.LayerNorm(16)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x + self.mix(x))


@pytest.mark.parametrize("mode", ["eager", "inductor", "modules"])
def test_a_hook_that_comes_late_and_leaves_no_other_trace(mode: str) -> None:
    """Nothing but the hook changes: neither what other hooks write to nor the model's mode."""
    model, x = Block().eval(), torch.randn(3, 16)
    plain = model(x)
    with fuse(model, mode=mode):
        model(x)
        model(x)
        for _ in range(2):
            hook = model.norm.register_forward_hook(lambda *arguments: 2 * arguments[2])
            assert torch.allclose(model(x), 2 * plain, atol=1e-5)
            hook.remove()
            assert torch.allclose(model(x), plain, atol=1e-5)


class Broken(Block):
    """One that is not captured to its end."""

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        torch._dynamo.graph_break()
        return y


@pytest.mark.parametrize("hooked", [0, 1])
@pytest.mark.parametrize("mode", ["eager", "inductor", "modules"])
def test_a_hook_on_one_of_two_modules_that_share_captured_code(mode: str, hooked: int) -> None:
    model, x = nn.Sequential(Broken(), Broken()), torch.randn(3, 16, requires_grad=True)
    model[hooked].mix.register_forward_pre_hook(lambda _module, arguments: (2 * arguments[0],))
    plain = model(x)
    with fuse(model, mode=mode):
        for _ in range(4):
            torch.testing.assert_close(model(x), plain, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("undone", [False, True])
@pytest.mark.parametrize("calls", [0, 3])
@pytest.mark.parametrize("mode", ["eager", "inductor", "modules"])
def test_a_fused_model_is_freed(mode: str, calls: int, undone: bool) -> None:
    model = Block()
    handle, gone = fuse(model, mode=mode), weakref.ref(model)
    for _ in range(calls):
        model(torch.randn(3, 16)).sum().backward()
    if undone:
        handle.undo()
    del model, handle
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize("mode", ["eager", "inductor"])
def test_a_first_call_inside_a_transform_leaves_the_next_to_be_fused(mode: str) -> None:
    model, x = Block(), torch.randn(4, 3, 16)
    with fuse(model, mode=mode) as handle:
        assert torch.allclose(torch.func.vmap(model)(x), model._call_impl(x), atol=1e-5)
        assert not handle.report.complete
        model(x)
        assert handle.report.fused == 1


def test_a_replica_for_data_parallel_is_refused() -> None:
    model = Block()
    with fuse(model), pytest.raises(RuntimeError, match="DataParallel can not copy"):
        model._replicate_for_data_parallel()
    model._replicate_for_data_parallel()


def test_an_example_is_tried_on_a_fused_model_too() -> None:
    model = Block()
    handle = fuse(model)
    assert not handle.report.complete
    assert fuse(model, example=torch.randn(3, 16)) is handle
    assert handle.report.complete
    with pytest.raises(RuntimeError):
        fuse(model, example=torch.randn(3, 17))
    assert "(undone)" not in repr(handle)


def test_a_handle_says_that_it_was_undone() -> None:
    handle = fuse(Block())
    assert "(undone)" not in repr(handle)
    handle.undo()
    assert repr(handle).startswith("Block (undone)")


def test_an_inspected_model_is_freed() -> None:
    model = Block()
    gone = weakref.ref(model)
    inspect(model, [torch.randn(3, 16)])
    del model
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize("closed", [False, True])
def test_a_monitored_model_is_freed(closed: bool) -> None:
    model = Block()
    monitor, gone = Monitor(model, every=1, log=lambda _: None), weakref.ref(model)
    model(torch.randn(3, 16)).sum().backward()
    if closed:
        monitor.close()
    del model, monitor
    gc.collect()
    assert gone() is None
