"""A fused model is the model it was: saved, copied, moved, beside others, and when it is undone."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

from addnorm.fusing import fuse

from .support.small import CASES, LAYERS, WIDTH, encoder, first, sequential, wide

pytestmark = pytest.mark.filterwarnings(
    "ignore:enable_nested_tensor is True:UserWarning",
    "ignore:.*is deprecated:DeprecationWarning:torch.*",
    "ignore:.*is deprecated:FutureWarning:torch.*",
)


def test_the_model_is_as_before() -> None:
    case = CASES["bert"]
    model = case.model().eval()
    inputs = case.inputs()
    before, keys = first(model(**inputs)), list(model.state_dict())
    handle = fuse(model)
    fused = first(model(**inputs))
    assert list(model.state_dict()) == keys
    assert all(module._compiled_call_impl is None for module in model.modules() if module is not model)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert twin._compiled_call_impl is None
        assert torch.equal(first(twin(**inputs)), before)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    assert torch.equal(first(torch.load(file, weights_only=False)(**inputs)), before)
    model.load_state_dict(model.state_dict())
    assert torch.equal(first(model(**inputs)), fused)
    handle.undo()
    handle.undo()
    assert model._compiled_call_impl is None
    assert "_compiled_call_impl" not in model.__dict__
    assert torch.equal(first(model(**inputs)), before)


@pytest.mark.parametrize("mode", ["eager", "modules"])
def test_weights_that_change_when_they_are_read_are_not_read(mode: str) -> None:
    """Each reading of such a weight in training is a step of the power iteration that its norm comes from."""
    model = nn.Sequential(spectral_norm(nn.Linear(8, 8)), nn.LayerNorm(8))
    before = copy.deepcopy(model.state_dict())
    fuse(model, mode=mode).undo()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_moving_to_another_dtype_keeps_it_fused() -> None:
    case = CASES["functional"]
    model = case.model().eval()
    handle = fuse(model)
    model(**case.inputs())
    model.double()
    output = model(**wide(case.inputs()))
    assert output.dtype == torch.float64
    handle.undo()
    assert (output - model(**wide(case.inputs()))).abs().max() < 1e-13


def test_twice_is_harmless_and_two_models_are_apart() -> None:
    case = CASES["functional"]
    one, two = case.model().eval(), case.model().eval()
    nn.init.normal_(two[0].linear.weight)
    inputs = case.inputs()
    before = one(**inputs), two(**inputs)
    handle, other = fuse(one), fuse(two)
    assert fuse(one) is handle
    assert other is not handle
    one(**inputs), two(**inputs)
    handle.undo()
    assert torch.equal(one(**inputs), before[0])
    assert two._compiled_call_impl is not None
    assert torch.allclose(two(**inputs), before[1], atol=1e-5)
    assert other.report.fused == LAYERS
    other.undo()
    again = fuse(one)
    assert again is not handle
    again.undo()


def test_models_that_differ_in_a_number_are_apart() -> None:
    x = torch.randn(2, 3, WIDTH)
    for number in (1e-5, 1e-3, 0.1):
        model = encoder(False)
        for module in model.modules():
            if isinstance(module, nn.LayerNorm):
                module.eps = number
            if isinstance(module, nn.Dropout):
                module.p = number
        handle = fuse(model, example=x)
        assert ["dropout" in site.folded for site in handle.report.sites] == [True] * 2 * LAYERS


def test_an_error_inside_with_undoes_too() -> None:
    model = sequential()

    def fails() -> None:
        with fuse(model):
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        fails()
    assert model._compiled_call_impl is None
