"""`fuse` on the models that people have: how many sites, the same results, dropout by seed, and the way back."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from addnorm.fusing import fuse

from .support import norms_by_hand as hand

pytest.importorskip("transformers")

from .support import models
from .support.models import build, first
from .support.small import results

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*is deprecated:DeprecationWarning:torch.*",
    "ignore:.*is deprecated:FutureWarning:torch.*",
)

WIDTH = models.TINY.width
CASES = models.cases()


def cast(inputs: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    return {name: t.to(dtype) if t.is_floating_point() else t for name, t in inputs.items()}


def quiet(model: nn.Module) -> nn.Module:
    """In train mode, but with nothing random: every probability is 0."""
    for module in model.modules():
        for name in (
            "p",
            "dropout",
            "activation_dropout",
            "attention_dropout",
            "dropout_prob",
            "drop_prob",
            "layerdrop",
        ):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)
    return model.train()


def smooth(model: nn.Module) -> nn.Module:
    """With GELU for ReLU, whose derivative jumps where a rounding changes a sign."""
    for module in model.modules():
        if getattr(module, "activation", None) is F.relu:
            module.activation = F.gelu
    return model


def assert_as_good(after: dict[str, Tensor], before: dict[str, Tensor], exact: dict[str, Tensor]) -> None:
    """Error against float64 at most twice the original's, plus roundings of the whole."""
    assert after.keys() == before.keys() == exact.keys()
    whole = sum(truth.square().sum() for name, truth in exact.items() if name != "output") ** 0.5
    for name, truth in exact.items():
        error = (after[name].double() - truth).norm()
        # a gradient that is zero but for rounding (a key's bias under softmax) has the error of what cancels in it
        scale = truth.norm() + (0 if name == "output" else whole / len(exact))
        limit = 2 * (before[name].double() - truth).norm() + 8 * torch.finfo(after[name].dtype).eps * scale
        assert error <= limit, f"{name}: {error:.3g} > {limit:.3g}"


@pytest.mark.parametrize("name", CASES)
def test_sites_results_dropout_and_undo(name: str) -> None:
    case = CASES[name]
    torch.manual_seed(1)
    inputs = case.inputs()
    model = quiet(build(case))
    before = results(model, inputs)
    exact = results(copy.deepcopy(model).double(), cast(inputs, torch.float64))
    handle = fuse(model)
    trying, after = results(model, inputs), results(model, inputs)
    report = handle.report
    assert (report.fused, report.skipped) == (case.fused, case.left), str(report)
    assert all(site.plain for site in report.sites if not site.fused), str(report)
    assert report.breaks == ()
    for key, value in trying.items():
        assert torch.equal(value, after[key]), f"{key} differs between the first call and the second"
    assert_as_good(after, before, exact)
    handle.undo()
    for key, value in results(model, inputs).items():
        assert torch.equal(value, before[key])


@pytest.mark.parametrize("name", CASES)
def test_bfloat16_and_dropout_by_seed(name: str) -> None:
    case = CASES[name]
    torch.manual_seed(1)
    inputs = cast(case.inputs(), torch.bfloat16)
    model = smooth(quiet(build(case, torch.bfloat16)))
    before = results(model, inputs)
    exact = results(copy.deepcopy(model).double(), cast(inputs, torch.float64))
    with fuse(model) as handle:
        assert_as_good(results(model, inputs), before, exact)
    assert handle.report.fused == case.fused, str(handle.report)
    noisy = build(case).train()

    def run(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return first(noisy(**cast(inputs, torch.float32)))

    random = not torch.equal(run(1), run(2))
    with fuse(noisy) as handle:
        run(1)
        assert torch.equal(run(1), run(1))
        assert torch.equal(run(1), run(2)) is not random
    folded = [site.folded for site in handle.report.sites if site.fused]
    assert case.folded in folded, folded


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("norm", hand.NORMS, ids=lambda norm: norm.__name__)
def test_norms_by_hand(norm: type[nn.Module], dtype: torch.dtype) -> None:
    """Every way of writing a norm is found, and gives what it gave."""
    torch.manual_seed(2)
    model = hand.Sublayer(WIDTH, norm(WIDTH)).to(dtype)
    nn.init.normal_(model.norm.weight, mean=0.7)
    x = torch.randn(3, 5, WIDTH, dtype=dtype)
    before, exact = results(model, {"x": x}), results(copy.deepcopy(model).double(), {"x": x.double()})
    with fuse(model) as handle:
        assert_as_good(results(model, {"x": x}), before, exact)
        assert_as_good(results(model, {"x": x}), before, exact)
    assert handle.report.fused == 1, str(handle.report)
    assert handle.report.sites[0].folded == ("branch_bias", "residual_scale", "add")
