"""`Monitor` beside others: a second monitor, torch.func, traces, torch's modes, compiled code around it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.flop_counter import FlopCounterMode

from addnorm import Monitor, inspect

from .support.faulty import WIDTH, Post

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, of its tracers and compilers


def data() -> Tensor:
    return torch.randn(2, 4, WIDTH)


def test_a_monitor_inside_of_another_is_refused() -> None:
    """It would not see the passes that the outer one samples."""
    model = nn.Sequential(Post(1), Post(1))
    refused = pytest.raises(ValueError, match="are one in the other: one monitor tells of all sites")
    for first, second in ((model, model[1]), (model[1], model), (model[1], torch.compile(model))):
        with Monitor(first, every=1, log=[].append):
            with refused:
                Monitor(second, every=1, log=print)  # pyright: ignore[reportArgumentType]
            model(data())
    seen: tuple[list[Any], list[Any]] = ([], [])
    with Monitor(model[0], every=1, log=seen[0].append), Monitor(model[1], every=1, log=seen[1].append):
        model(data()).sum().backward()
    assert [len(each) for each in seen] == [1, 1]


def gradient(model: nn.Module) -> None:
    parameters = {name: each.detach() for name, each in model.named_parameters()}
    torch.func.grad(lambda given: torch.func.functional_call(model, given, (data(),)).sum())(parameters)


def counted(model: nn.Module) -> None:
    with FlopCounterMode(display=False) as counter:
        model(data())
    assert counter.get_total_flops() == 2 * 2 * 4 * WIDTH * WIDTH


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize(
    "watch",
    [gradient, counted, lambda model: torch.vmap(model)(data()[:, None]), lambda model: make_fx(model)(data()),
     lambda model: torch.jit.trace(model, (data(),))],
    ids=["torch.func.grad", "FlopCounterMode", "vmap", "make_fx", "jit.trace"],
)  # fmt: skip
def test_what_watches_a_pass_sees_the_plain_model_and_the_next_one_is_sampled(
    watch: Callable[[nn.Module], object],
) -> None:
    model, seen = Post(1), []
    with Monitor(model, every=2, log=seen.append):
        watch(model)
        for _ in range(3):
            model(data()).sum().backward()
    assert [numbers["step"] for numbers in seen] == [0, 2]
    monitor = Monitor(model, every=1, log=seen.append)
    watch(model)
    with pytest.warns(UserWarning, match=r"none was one \(.*no torch.func transform or trace around it\)"):
        monitor.close()


def test_a_monitor_that_was_never_called_says_so() -> None:
    model = Post(1)
    compiled = torch.compile(model, backend="eager")
    monitor = Monitor(model, every=1, log=print)
    compiled(data()).sum().backward()
    with pytest.warns(UserWarning, match="only inside of what torch.compile made .* to what is called") as warned:
        monitor.close()
    assert warned[0].filename == __file__
    with pytest.warns(UserWarning, match="was not called") as warned, Monitor(model, every=1, log=print):
        pass
    assert warned[0].filename == __file__
    with pytest.raises(ZeroDivisionError), Monitor(model, every=1, log=print):  # which says what went wrong
        _ = 1 / 0


def test_a_monitor_that_lost_its_place_says_so() -> None:
    model, seen = Post(1), []
    monitor = Monitor(model, every=1, log=seen.append)
    model(data()).sum().backward()
    model.compile(backend="eager")
    model(data()).sum().backward()
    with pytest.warns(UserWarning, match=r"saw 1 call and no more: another has taken .*, as model.compile\(\) does"):
        monitor.close()
    assert len(seen) == 1
    with Monitor(model, every=1, log=seen.append):
        model(data()).sum().backward()
    assert len(seen) == 2


def test_a_model_without_values_or_code_is_refused() -> None:
    empty, x = nn.Sequential(Post(1)).to("meta"), torch.empty(2, 4, WIDTH, device="meta")
    scripted = torch.jit.script(nn.TransformerEncoderLayer(WIDTH, 2, 16, batch_first=True))
    for model, given, message in (
        (empty, x, "model has no values yet: 0.sites.0.linear.weight is on the meta device"),
        (scripted, data(), "model is TorchScript, which has no Python code left"),
    ):
        with pytest.raises(ValueError, match=message):
            inspect(model, given)
        with pytest.raises(ValueError, match=message), Monitor(model, every=1, log=print):
            model(given)
