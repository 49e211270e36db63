"""What is done to a fused model later and from outside: code replaced, modes and traces around it, recomputation."""

from __future__ import annotations

import copy
import inspect
import logging
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from addnorm.fusing import fuse

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:torch.*"),  # Inductor's own imports
    pytest.mark.filterwarnings("ignore:.*is deprecated:FutureWarning:torch.*"),
    pytest.mark.filterwarnings("ignore:addnorm.fuse found nothing"),  # in mode "modules" of a model without norms alone
]
CAPTURED = ["eager", "inductor"]
MODES = [*CAPTURED, "modules"]
WIDTH = 16


class Block(nn.Module):
    def __init__(self, p: float = 0.0) -> None:
        super().__init__()
        self.mix, self.norm = nn.Linear(WIDTH, WIDTH), nn.RMSNorm(WIDTH)
        self.drop = nn.Dropout(p)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x + self.drop(self.mix(x)))


class Model(nn.Module):
    def __init__(self, p: float = 0.0) -> None:
        super().__init__()
        self.first, self.second = Block(p), Block(p)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x))


@pytest.fixture
def x() -> Tensor:
    return torch.randn(3, WIDTH)


def agree(model: nn.Module, plain: nn.Module, x: Tensor) -> None:
    for _ in range(2):
        torch.testing.assert_close(model(x), plain(x))


@pytest.fixture(params=[0, 2])
def calls(request: pytest.FixtureRequest) -> int:
    """How often the model has been called before."""
    return request.param


def fused(mode: str, x: Tensor, calls: int, model: nn.Module | None = None) -> tuple[nn.Module, nn.Module, Any]:
    model = Model() if model is None else model
    plain, handle = copy.deepcopy(model), fuse(model, mode=mode)
    for _ in range(calls):
        model(x)
    return model, plain, handle


# -- code that is replaced ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [Model, Block, nn.RMSNorm])
@pytest.mark.parametrize("mode", MODES)
def test_a_class_whose_forward_is_replaced(
    mode: str, kind: type[nn.Module], x: Tensor, calls: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, plain, _ = fused(mode, x, calls)
    before = kind.forward
    with monkeypatch.context() as patch:
        patch.setattr(kind, "forward", lambda self, x: 2 * before(self, x) + 1)
        agree(model, plain, x)
    agree(model, plain, x)


@pytest.mark.parametrize("path", ["", "first", "first.norm"])
@pytest.mark.parametrize("mode", MODES)
def test_a_module_whose_forward_or_class_is_replaced(mode: str, path: str, x: Tensor, calls: int) -> None:
    model, plain, _ = fused(mode, x, calls)
    parts = [each.get_submodule(path) for each in (model, plain)]
    kept = [part.__dict__.get("forward") for part in parts]
    for part in parts:
        part.forward = lambda x, old=part.forward: 2 * old(x) + 1
    agree(model, plain, x)
    for part, before in zip(parts, kept, strict=True):
        del part.forward
        if before is not None:
            part.forward = before
    agree(model, plain, x)
    kind = type(parts[0])
    other = type("Other", (kind,), {"forward": lambda self, x: 3 * kind.forward(self, x)})
    for part in parts:
        part.__class__ = other
    agree(model, plain, x)


@pytest.mark.parametrize("mode", MODES)
def test_a_torch_layer_whose_sublayer_is_replaced(mode: str, x: Tensor) -> None:
    layer = nn.TransformerEncoderLayer(WIDTH, 2, 32, dropout=0.0, batch_first=True)
    model, plain, handle = fused(mode, x[None], 2, layer)
    assert handle.report.fused == 2
    for each in (model, plain):
        each._ff_block = lambda x, old=each._ff_block: 2 * old(x) + 1
    agree(model, plain, x[None])


@pytest.mark.parametrize("mode", MODES)
def test_forward_keeps_its_signature(mode: str) -> None:
    model = Model()
    before = inspect.signature(model.forward)
    with fuse(model, mode=mode):
        assert inspect.signature(model.forward) == before


# -- others that trace ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_what_others_trace_is_the_plain_model(mode: str, x: Tensor, calls: int) -> None:
    model, plain, handle = fused(mode, x, calls)
    with torch.no_grad():
        traces = torch.fx.symbolic_trace(nn.Sequential(model)), make_fx(model)(x), torch.jit.trace(model, x)
        for each in (model, *traces):
            agree(each, plain, x)
    assert handle.report.fused + handle.report.plain == 2


@pytest.mark.parametrize("mode", MODES)
def test_a_script_is_made_of_a_copy(mode: str, x: Tensor, calls: int) -> None:
    """It would take the fused call along, which does not heed the script's own eval()."""
    model, plain, handle = fused(mode, x, calls)
    for scripted in (model, nn.Sequential(model)):
        with pytest.raises(RuntimeError, match=r"torch\.jit\.script can not read: give it a copy"):
            torch.jit.script(scripted)
    agree(torch.jit.script(copy.deepcopy(model)), plain, x)
    handle.undo()
    agree(torch.jit.script(model), plain, x)


# -- modes around it ------------------------------------------------------------------------------------------------


class Doubling(TorchDispatchMode):
    """Doubles what rsqrt gives, of which RMSNorm is made."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        return 2 * result if function is torch.ops.aten.rsqrt.default else result


class DoublingNorms(TorchFunctionMode):
    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        return 2 * result if function is nn.functional.rms_norm else result


@pytest.mark.parametrize("around", [Doubling, DoublingNorms])
@pytest.mark.parametrize("mode", MODES)
def test_a_mode_sees_what_the_plain_model_does(mode: str, around: Any, x: Tensor, calls: int) -> None:
    model, plain, handle = fused(mode, x, calls)
    with around():
        agree(model, plain, x)
    agree(model, plain, x)
    assert handle.report.fused + handle.report.plain == 2


@pytest.mark.parametrize("mode", MODES)
def test_fake_tensors(mode: str, x: Tensor, calls: int) -> None:
    model, plain, handle = fused(mode, x, calls)
    with FakeTensorMode(allow_non_fake_inputs=True) as fake:
        assert model(fake.from_tensor(x)).shape == x.shape
    agree(model, plain, x)
    assert handle.report.fused + handle.report.plain == 2


@pytest.fixture
def default_device() -> Iterator[None]:
    torch.set_default_device("cpu")
    yield
    torch.set_default_device(None)


@pytest.mark.usefixtures("default_device")
@pytest.mark.parametrize("mode", MODES)
def test_a_default_device_is_no_reason_to_run_the_plain_model(mode: str, x: Tensor) -> None:
    model, plain, handle = fused(mode, x, 2)
    agree(model, plain, x)
    assert handle.report.fused + handle.report.plain == 2


# -- recomputation, and torch's log ---------------------------------------------------------------------------------


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("mode", MODES)
def test_a_fused_model_that_is_checkpointed_recomputes_what_it_ran(mode: str, reentrant: bool, x: Tensor) -> None:
    """From the first step on, with dropout: rows of an RMSNorm have a constant sum of squares, whose gradient is
    rounding, unless the backward has another mask than the forward."""
    model, x = fused(mode, x, 0, Model(p=0.5))[0], x.requires_grad_()
    for _ in range(4):
        y = checkpoint(model, x, use_reentrant=reentrant)
        x.grad = None
        y.square().sum().backward()
        assert x.grad is not None
        assert x.grad.norm() < 1e-4


@pytest.mark.parametrize("mode", CAPTURED)
def test_the_models_own_error_comes_without_torchs_log(mode: str, x: Tensor, caplog: pytest.LogCaptureFixture) -> None:
    model = fused(mode, x, 0)[0]
    with caplog.at_level(logging.WARNING), pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        model(x[:, :3])
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
