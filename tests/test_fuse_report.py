"""What the report of a fused model says, whatever happened before."""

from __future__ import annotations

import copy
import functools
import pickle
import warnings
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch.nn.modules.module import register_module_forward_hook

from addnorm import Residual, Stack
from addnorm.fusing import fuse

WIDTH = 16
BACKWARD = ("a backward hook", "a backward pre-hook")


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mix, self.norm = nn.Linear(WIDTH, WIDTH), nn.LayerNorm(WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x + self.mix(x))


class Looked(Block):
    """Fails behind its norm where a token is unknown."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(4, WIDTH)

    def forward(self, x: Tensor, token: Tensor) -> Tensor:
        return super().forward(x) + self.tokens(token)


@pytest.mark.filterwarnings("ignore:addnorm.fuse found nothing")  # in mode "modules"
@pytest.mark.parametrize("mode", ["eager", "modules"])
def test_a_pass_that_failed_counts_no_calls(mode: str) -> None:
    model, x = Looked(), torch.randn(1, WIDTH)
    with fuse(model, mode=mode) as handle:
        with pytest.raises(IndexError):
            model(x, torch.tensor([7]))
        model(x, torch.tensor([1]))
    assert [(site.norm, site.call) for site in handle.report.sites] == [("norm", 0)], str(handle.report)


def test_another_models_breaks_are_not_told() -> None:
    class Broken(Block):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.sum() > 1e9 else super().forward(x)

    broken, whole = fuse(Broken()), fuse(Block())
    for handle in (broken, whole):
        handle.model(torch.randn(3, WIDTH))
    assert len(broken.report.breaks) == 1
    assert whole.report.breaks == ()


@pytest.mark.filterwarnings("ignore:addnorm.fuse found nothing")
def test_nor_where_nothing_was_captured() -> None:
    counters["graph_break"]["one of another model"] += 1
    model = nn.Sequential(Block())
    model[0].register_full_backward_hook(lambda *_: None)
    with fuse(model, mode="eager") as handle:
        model(torch.randn(3, WIDTH))
    assert handle.report.breaks == ()


def test_of_what_was_captured_for_several_types_the_one_that_ran_last_is_told() -> None:
    class Clamped(Block):
        def forward(self, x: Tensor) -> Tensor:
            total = x + self.mix(x)
            return self.norm(total.clamp(-9, 9) if x.dtype == torch.bfloat16 else total)

    model, x = Clamped(), torch.randn(3, WIDTH)
    with fuse(model, mode="eager") as handle:
        for dtype, fused in 2 * [(torch.float32, 1), (torch.bfloat16, 0)]:
            model.to(dtype)(x.to(dtype))
            assert handle.report.fused == fused, f"{dtype}: {handle.report}"
            assert ("its input is clamp" in str(handle.report)) == (not fused)


def test_an_empty_batch_tells_nothing_of_the_sites() -> None:
    model = Block()
    with fuse(model, example=torch.randn(3, WIDTH)) as handle:
        assert model(torch.randn(0, WIDTH)).shape == (0, WIDTH)
    assert handle.report.fused == 1, str(handle.report)


@pytest.mark.filterwarnings("ignore:addnorm.fuse found nothing")
@pytest.mark.parametrize(
    ("register", "words"),
    [
        (nn.Module.register_forward_hook, "it has a forward hook"),
        (nn.Module.register_forward_pre_hook, "it has a forward pre-hook"),
        (nn.Module.register_full_backward_hook, "it has a backward hook"),
        (nn.Module.register_full_backward_pre_hook, "it has a backward pre-hook"),
        (lambda _, hook: register_module_forward_hook(hook), "every module has a forward hook"),
    ],
)
def test_mode_modules_names_the_hook(register: Callable, words: str) -> None:
    model = Block().bfloat16()
    hook = register(model.norm, lambda *_: None)
    with fuse(model, mode="modules") as handle:
        model(torch.randn(3, WIDTH, dtype=torch.bfloat16))
        reason = handle.report.sites[0].reason
        assert words in reason
        assert "remove it" in reason
        assert ("mode 'eager'" in reason) == (not any(kind in words for kind in BACKWARD))
        hook.remove()
        model(torch.randn(3, WIDTH, dtype=torch.bfloat16))
        assert handle.report.plain == 1, str(handle.report)


def test_a_handle_is_nothing_to_copy() -> None:
    handle = fuse(Block())
    for attempt in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match=r"handle of a fused Block can not be pickled or copied: save or copy the"):
            attempt(handle)
    assert pickle.loads(pickle.dumps(handle.report)) == handle.report


@pytest.mark.filterwarnings("ignore:addnorm.fuse found nothing")
@pytest.mark.parametrize("mode", ["eager", "modules"])
def test_what_is_written_with_addnorm_has_nothing_left(mode: str) -> None:
    model = Stack([nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)], WIDTH, placement="post")
    handle = fuse(model, mode=mode, example=torch.randn(3, WIDTH))
    hint = "its 2 AddNorm modules run fused as written: nothing is left to fuse there"
    assert str(handle.report) == f"no norm calls seen; {hint}"
    one = nn.Sequential(Residual(nn.Linear(WIDTH, WIDTH), WIDTH), Block())
    report = str(fuse(one, mode=mode, example=torch.randn(3, WIDTH)).report)
    assert "of 1 norm call fused" in report
    assert "\n  its 1 AddNorm module runs fused as written" in report


@functools.lru_cache
def angle(width: int) -> float:
    return 1 / width


def test_only_the_models_own_warnings_are_heard() -> None:
    class Talks(Block):
        def forward(self, x: Tensor, shift: np.ndarray) -> Tensor:
            moved = super().forward(x * angle(x.shape[-1]) + torch.tensor(shift, dtype=x.dtype))
            warnings.warn("the model's own", stacklevel=1)
            return moved if moved.sum().item() < 1e9 else x

    model, x, shift = Talks(), torch.randn(3, WIDTH), np.ones(WIDTH)
    before = model._call_impl
    torch._dynamo.reset()  # which forgets who is told of captures
    torch._dynamo.utils.warn_once_cache.clear()
    with fuse(model) as handle, warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        after = model(x, shift)
        model(x, shift)
    assert {str(each.message) for each in heard} == {"the model's own"}
    assert len(heard) == 2
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert (after - before(x, shift)).abs().max() < 1e-5
    assert handle.report.fused == 1


class Twice(Block):
    """Two norms of one sum, as models with parallel sublayers have them."""

    def __init__(self) -> None:
        super().__init__()
        self.other = nn.RMSNorm(WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        total = x + self.mix(x)
        return self.norm(total) * self.other(total)


def test_norms_that_share_a_sum() -> None:
    model, x = Twice(), torch.randn(3, WIDTH, requires_grad=True)
    (before,) = torch.autograd.grad(model(x).square().sum(), x)
    with fuse(model) as handle:
        for _ in range(2):
            (after,) = torch.autograd.grad(model(x).square().sum(), x)
            assert (after - before).abs().max() < 1e-5 * before.abs().max()
    first, second = handle.report.sites
    assert (first.norm, first.fused, first.stream) == ("norm", True, True)
    assert (second.norm, second.plain) == ("other", True)
    assert "another norm of the same sum" in second.reason


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("mode", ["eager", "modules"])
def test_a_norm_that_is_called_twice_has_one_name(mode: str, affine: bool) -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.linear = nn.LayerNorm(WIDTH, elementwise_affine=affine), nn.Linear(WIDTH, WIDTH)

        def forward(self, x: Tensor) -> Tensor:
            x = self.norm(x + self.linear(x))
            return self.norm(x + self.linear(x))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # in mode "modules" nothing is fused
        handle = fuse(Twice(), mode=mode, example=torch.randn(3, WIDTH))
    assert [(site.norm, site.call) for site in handle.report.sites] == [("norm", 0), ("norm", 1)]
