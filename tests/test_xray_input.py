"""What `inspect` takes: batches, losses and what they get; and what it refuses."""

from __future__ import annotations

from collections import UserDict
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from addnorm.xray import inspect

from .support.faulty import WIDTH, Pre
from .test_xray import MASK, inputs, loss


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((3, []), TypeError, "model must be a torch.nn.Module, got int"),
        ((Pre(1), 5), TypeError, "batches must be a batch or an iterable of them"),
        ((Pre(1), "text"), TypeError, "batches must be a batch or an iterable of them, .*; got str"),
        ((Pre(1), [5]), TypeError, "a batch must be a tensor, a tuple or a dict, got int"),
        ((Pre(1), []), ValueError, "batches is empty"),
        ((Pre(1), [torch.zeros(0, 2, WIDTH)]), ValueError, "batches have no real token: they are empty, or the mask"),
        ((Pre(1), [(torch.zeros(3, 5, WIDTH), 0 * MASK)]), ValueError, "batches have no real token"),
        ((nn.Linear(WIDTH, 2), [torch.zeros(2, WIDTH)]), ValueError, "no Add & Norm site found in Linear: it calls no"),
    ],
)
def test_bad_input(arguments: tuple[Any, ...], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        inspect(*arguments)


def test_one_batch_may_come_alone() -> None:
    model, batch = Pre(2).double(), inputs()
    expected = inspect(model, [batch], loss=loss)
    assert inspect(model, batch, loss=loss).sites == expected.sites
    assert inspect(model, UserDict(batch), loss=loss).sites == expected.sites  # as a tokenizer gives
    assert inspect(model, batch["x"]).sites == inspect(model, [batch["x"]]).sites


def test_a_loss_that_is_none_is_refused() -> None:
    with pytest.raises(TypeError, match="loss must be a function of the output, or of output and batch, got int"):
        inspect(Pre(1), [torch.zeros(1, 2, WIDTH)], loss=3)  # pyright: ignore[reportArgumentType]


class OfTheOutput(nn.Module):
    def forward(self, output: Tensor) -> Tensor:
        return loss(output)


def powered(output: Tensor, power: float = 3) -> Tensor:
    return (output[MASK.bool()] ** power).sum()


def beside_its_batch(output: Tensor, batch: dict[str, Tensor]) -> Tensor:
    return (output[batch["attention_mask"].bool()] ** 3).sum()


@pytest.mark.parametrize(
    "given", [OfTheOutput(), powered, beside_its_batch, lambda *both: beside_its_batch(*both)],
    ids=["module", "default", "two", "any"],
)  # fmt: skip
def test_a_loss_gets_the_batch_where_it_asks_for_it(given: Any) -> None:
    model, batches = Pre(2).double(), [inputs(1), inputs(2)]
    assert inspect(model, batches, loss=given).sites == inspect(model, batches, loss=loss).sites


def test_a_loss_where_no_gradient_is_recorded_is_refused() -> None:
    fixed, x = Pre(1).requires_grad_(False), torch.zeros(1, 2, WIDTH, requires_grad=True)
    with pytest.raises(ValueError, match="a loss needs gradients, and no parameter of the model requires one"):
        inspect(fixed, [x], loss=torch.sum)
    with (
        torch.inference_mode(),
        pytest.raises(ValueError, match=r"gradients, and torch.inference_mode\(\) records none"),
    ):
        inspect(Pre(1), [torch.zeros(1, 2, WIDTH)], loss=torch.sum)


def test_a_loss_without_a_gradient_is_refused() -> None:
    for wrong, message in ((lambda output: output, "scalar tensor, got a tensor"), (lambda _: 1.0, "got float")):
        with pytest.raises(ValueError, match=message):
            inspect(Pre(1), [torch.zeros(1, 2, WIDTH)], loss=wrong)


class Merging(nn.Linear):
    """Adapted weights, which are merged where the mode changes to eval, as LoRA's layers do it."""

    merged = False

    def train(self, mode: bool = True) -> Merging:
        super().train(mode)
        self.merged = not mode
        return self


def test_modules_that_do_more_where_their_mode_changes_are_as_before() -> None:
    model = Pre(3)
    for site in model.sites:
        site.linear = Merging(WIDTH, WIDTH)
    model.sites[1].eval()
    before = [(module.training, getattr(module, "merged", None)) for module in model.modules()]
    inspect(model, torch.randn(2, 4, WIDTH))
    assert [(module.training, getattr(module, "merged", None)) for module in model.modules()] == before
