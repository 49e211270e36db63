"""`fuse` finds every Add & Norm of a model, changes no result, and can be undone."""

from __future__ import annotations

import copy
import warnings
from collections import UserDict
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.utils.checkpoint import checkpoint

from addnorm.fusing import fuse, trial

from .support.small import (
    CASES,
    LAYERS,
    WIDTH,
    Sublayer,
    assert_as_good,
    first,
    no_dropout,
    results,
    sequential,
    wide,
)

pytestmark = pytest.mark.filterwarnings(
    "ignore:enable_nested_tensor is True:UserWarning",
    "ignore:.*is deprecated:DeprecationWarning:torch.*",
    "ignore:.*is deprecated:FutureWarning:torch.*",
)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", CASES)
def test_every_site_is_found_and_nothing_changes(name: str, dtype: torch.dtype) -> None:
    case = CASES[name]
    model = no_dropout(case.model(dtype))
    inputs = case.inputs(dtype=dtype)
    before = results(model, inputs)
    exact = results(copy.deepcopy(model).double(), wide(inputs))
    handle = fuse(model)
    trying = results(model, inputs)
    assert (handle.report.fused, handle.report.skipped) == (case.fused, case.skipped), str(handle.report)
    after = results(model, inputs)
    for name, value in trying.items():
        assert torch.equal(value, after[name]), f"{name} differs between the first call and the second"
    assert_as_good(after, before, exact)
    handle.undo()
    for name, value in results(model, inputs).items():
        assert torch.equal(value, before[name])


def test_report_of_bert() -> None:
    case = CASES["bert"]
    model = case.model().eval()
    handle = fuse(model, example=case.inputs())
    report = handle.report.to_dict()
    assert (report["fused"], report["skipped"], report["breaks"]) == (2 * LAYERS + 1, 0, [])
    norms = {name for name, module in model.named_modules() if isinstance(module, nn.LayerNorm)}
    assert {site["norm"] for site in report["sites"]} == norms
    by_norm = {site["norm"]: site for site in report["sites"]}
    assert by_norm["embeddings.LayerNorm"]["folded"] == ["add"]
    assert by_norm["encoder.layer.0.output.LayerNorm"]["folded"] == ["branch_bias", "dropout", "add"]
    assert all(site["backend"] for site in report["sites"])
    model.train()
    model(**case.inputs())
    assert len(handle.report.sites) == 2 * LAYERS + 1  # train is the same calls, captured again
    assert "5 of 5" in str(handle.report)


def test_dropout_repeats_and_has_its_rate() -> None:
    model = sequential().train()
    for layer in model:
        nn.init.zeros_(layer.linear.weight)
        nn.init.constant_(layer.linear.bias, 2.0)
    x = torch.zeros(64, 50, WIDTH)
    with fuse(model):
        runs = []
        for seed in (1, 1, 2):
            torch.manual_seed(seed)
            runs.append(model(x))
        assert torch.equal(runs[0], runs[1])
        assert not torch.equal(runs[0], runs[2])
        model.eval()
        assert torch.equal(model(x), model(x))
    with fuse(model[0]):
        model[0].train()
        dropped = (model[0](x) < 0).double().mean().item()  # of a constant branch, what is dropped lies below the mean
    count = x.numel()
    assert abs(dropped - 0.1) < 5 * (0.1 * 0.9 / count) ** 0.5 + 2**-16


def test_examples_of_every_kind() -> None:
    x = torch.randn(2, 3, WIDTH)
    for example in (x, (x,), [x], {"input": x}, UserDict(input=x)):
        assert fuse(sequential(), example=example).report.fused == LAYERS
    model = sequential()
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        fuse(model, example=torch.randn(2, WIDTH + 1))
    assert model._compiled_call_impl is None
    assert not {"forward", "compile", "__getstate__"} & {*model.__dict__}


def test_hooks_run_whenever_they_came() -> None:
    case = CASES["functional"]
    model = case.model()
    inputs = case.inputs()
    seen: list[str] = []
    model[0].register_forward_hook(lambda *_: seen.append("early"))
    with fuse(model) as handle:
        model(**inputs)
        model(**inputs)
        assert seen == ["early"] * 2
        late = model[1].register_forward_hook(lambda *_: seen.append("late"))
        model(**inputs)
        assert seen[2:] == ["early", "late"]
        late.remove()
        changing = model[1].register_forward_hook(lambda *arguments: 2 * arguments[2])
        doubled = model.eval()(**inputs)
        changing.remove()
        assert torch.equal(doubled, 2 * model(**inputs))
        assert handle.report.fused == LAYERS


def test_lengths_do_not_capture_again() -> None:
    case = CASES["bert"]
    model = case.model().eval()
    lengths = (5, 6, 7, 9, 12, 16, 21)
    with fuse(model) as handle, torch.no_grad():
        outputs = [first(model(**case.inputs(length))) for length in lengths]
    assert handle._call.captures <= 2  # one for the first length, one for all others
    for length, output in zip(lengths, outputs, strict=True):
        assert torch.allclose(output, first(model(**case.inputs(length))), atol=1e-5)


def test_nothing_found_is_a_warning() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))
    handle = fuse(model)
    with pytest.warns(UserWarning, match="nothing to fuse in Sequential"):
        model(torch.randn(2, 4))
    assert handle.report.sites[0].norm == "1"
    assert "linear" in handle.report.sites[0].reason
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model(torch.randn(2, 4))  # once is enough


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # Dynamo looks at it
def test_a_graph_break_is_named_and_the_rest_is_fused() -> None:
    class Broken(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(Breaking() for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            for layer in self.layers:
                x = layer(x)
            return x

    class Breaking(Sublayer):
        def forward(self, x: Tensor) -> Tensor:
            y = super().forward(x)
            torch._dynamo.graph_break()
            return y

    model = Broken().eval()
    x = torch.randn(2, 3, WIDTH)
    before = model(x)
    with fuse(model) as handle:
        assert torch.allclose(model(x), before, atol=1e-5)
        assert torch.allclose(model(x), before, atol=1e-5)
    assert handle.report.breaks
    assert [site.norm for site in handle.report.sites] == ["layers.0", "layers.1", "layers.2"]
    assert handle.report.fused == 3


def test_checkpointed_code_is_fused_too() -> None:
    class Checkpointed(Sublayer):
        def forward(self, x: Tensor) -> Tensor:
            return checkpoint(super().forward, x, use_reentrant=False)

    model = no_dropout(Checkpointed())
    x = torch.randn(2, 3, WIDTH)
    before = results(model, {"x": x})
    exact = results(copy.deepcopy(model).double(), {"x": x.double()})
    with fuse(model) as handle:
        results(model, {"x": x})
        after = results(model, {"x": x})
    assert handle.report.fused == 1
    assert_as_good(after, before, exact)


def test_layers_checkpointed_one_by_one_say_why_half_is_lost() -> None:
    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(2))

        def forward(self, x: Tensor) -> Tensor:
            for norm in self.norms:
                x = x + torch.tanh(norm(x))
            return x

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(Layer() for _ in range(LAYERS))
            self.norm = nn.LayerNorm(WIDTH)

        def forward(self, x: Tensor) -> Tensor:
            for layer in self.layers:
                x = checkpoint(layer, x, use_reentrant=False)
            return self.norm(x)

    model = Model()
    handle = fuse(model)
    model(torch.randn(2, 3, WIDTH))
    assert handle.report.fused == LAYERS
    reasons = {site.norm: site.reason for site in handle.report.sites if not site.fused}
    assert "its input enters checkpointed code" in reasons["layers.1.norms.0"]
    assert "tag_activation_checkpoint" in reasons["norm"]


def test_a_site_that_differs_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(x: Tensor, residual: Tensor, weight: Any = None, bias: Any = None, **options: Any) -> Tensor:
        y = F.layer_norm(x + residual, x.shape[-1:], weight, bias)
        return y * 1.001 if bias is not None and bias.sum() > 0 else y

    monkeypatch.setattr(trial, "add_norm", wrong)
    model = sequential().eval()
    nn.init.ones_(model[1].bias)
    x = torch.randn(2, 3, WIDTH)
    before = model(x)
    with fuse(model) as handle:
        assert torch.equal(model(x), before)
        assert torch.equal(model(x), before)
    good, bad = handle.report.sites
    assert good.fused
    assert not bad.fused
    assert "off float64" in bad.reason


@pytest.mark.parametrize("rows", [2, 0])
def test_a_site_with_nothing_to_judge_by_is_not_trusted(rows: int) -> None:
    model = sequential().eval()
    with fuse(model) as handle:
        with pytest.warns(UserWarning, match="no finite number to judge it by" if rows else "its tensors were empty"):
            assert model(torch.full((rows, 3, WIDTH), torch.nan)).isnan().all()
        assert handle.report.fused == 0
        model(torch.randn(2, 3, WIDTH))
        assert not handle._call._open
        assert handle.report.fused == LAYERS


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((3,), TypeError, "model must be a torch.nn.Module, got int"),
        (
            (nn.Linear(2, 2), "fast"),
            ValueError,
            "mode='fast' is unknown; there are: 'auto', 'eager', 'inductor', 'm",
        ),
    ],
)
def test_bad_arguments(arguments: tuple[Any, ...], error: type[Exception], message: str) -> None:
    model, *mode = arguments
    with pytest.raises(error, match=message):
        fuse(model, **({"mode": mode[0]} if mode else {}))


def test_a_compiled_model_is_refused() -> None:
    model = nn.Linear(2, 2)
    model.compile(backend="eager")
    for compiled in (model, torch.compile(nn.Linear(2, 2), backend="eager")):
        with pytest.raises(ValueError, match="has been compiled"):
            fuse(compiled)
