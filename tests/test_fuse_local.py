"""Mode "modules" of `fuse` by itself: each module replaced where it stands, and what is left to torch."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from addnorm.fusing import fuse

from .support import norms_by_hand as hand

pytest.importorskip("transformers")

from .support import models
from .test_fuse_modes import CASES, WIDTH, L, run
from .test_fusing_models import assert_as_good, quiet, results

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:torch.*"),  # Inductor's own imports
    pytest.mark.filterwarnings("ignore:.*is deprecated:FutureWarning:torch.*"),
]

# Calls fused with their sum, norms fused alone, and all that have no sum in their module's code, where nothing is
# captured. torch's narrow LayerNorms are left alone there: see measured.py.
LOCAL = {
    "BERT": (2 * L, 0, 1),  # the embeddings' sum is in the embeddings' own code
    "LLaMA": (0, 2 * L + 1, 2 * L + 1),
    "T5": (0, 5 * L + 2, 5 * L + 2),  # called LayerNorm, an RMSNorm by its numbers
    "Gemma 3": (0, 6 * L + 1, 6 * L + 1),  # weights around zero
    "nn.TransformerEncoder, post-norm": (2 * L, 0, 0),
    "nn.TransformerEncoder, pre-norm": (L, 0, L),  # a layer's first sum is made in the layer before
    "nn.TransformerDecoder, post-norm": (3 * L, 0, 0),
    "nn.TransformerDecoder, pre-norm": (2 * L, 0, L + 1),
}


@pytest.mark.parametrize("name", LOCAL)
def test_modules_by_themselves(name: str) -> None:
    handle, after, before, exact = run(name, "modules")
    report = handle.report
    assert (report.fused, report.plain, report.skipped) == LOCAL[name], str(report)
    for found in after:
        assert_as_good(found, before, exact)


@pytest.mark.filterwarnings("ignore:addnorm.fuse found nothing")  # without gradients
def test_norms_left_to_torch_run_unwatched_until_things_change() -> None:
    model, x = (
        nn.Sequential(nn.Linear(768, 768), nn.LayerNorm(768), nn.Linear(768, 768), nn.LayerNorm(768)),
        torch.randn(3, 768),
    )

    def watched() -> list[bool]:
        return [norm._compiled_call_impl is not None for norm in (model[1], model[3])]

    with fuse(model, mode="modules") as handle:
        assert watched() == [True, True]
        with torch.no_grad():
            model(x)
            model(x)
            assert watched() == [False, False]  # float32 without gradients: torch is as fast
        for norm in (model[1], model[3]):
            before = norm(x)
            norm.weight.data.mul_(2)
            assert not torch.equal(norm(x), before)  # its own code runs, on its own numbers
        model(x)
        assert watched() == [True, True]  # trained, a row of 768 is fused
        assert handle.report.plain == 2, str(handle.report)
        with torch.no_grad():
            model(x)
            assert watched() == [False, False]
            model.bfloat16()
            y = model(x.bfloat16())
        assert watched() == [True, True]  # in bfloat16 always
        other = object()
        model[1].__dict__["_compiled_call_impl"] = other  # another's, while ours is there
        handle.undo()
        assert model[1].__dict__.pop("_compiled_call_impl") is other
    assert watched() == [False, False]
    with torch.no_grad():
        assert torch.allclose(model(x.bfloat16()).float(), y.float(), atol=2**-6, rtol=2**-6)


def test_timm_block_by_itself() -> None:
    class Block(hand.TimmBlock):
        def __init__(self, width: int) -> None:
            super().__init__(width)
            self.attn = self.mix
            del self.mix

        def forward(self, x: Tensor) -> Tensor:
            x = x + self.drop_path1(self.ls1(self.attn(self.norm1(x))))
            return x + self.drop_path2(self.ls2(self.mlp(self.norm2(x))))

    model, x = quiet(hand.stack(Block, L, WIDTH)), torch.randn(2, 5, WIDTH)
    before, exact = results(model, {"input": x}), results(copy.deepcopy(model).double(), {"input": x.double()})
    with fuse(model, mode="modules") as handle:
        assert_as_good(results(model, {"input": x}), before, exact)
    assert (handle.report.fused, handle.report.skipped) == (L, L), str(handle.report)


def test_hooks_inside_a_fused_module_run() -> None:
    model, x, seen = models.encoder(False).train(), torch.randn(2, 5, WIDTH), []
    with fuse(model, mode="modules", example=x):
        hook = model.layers[0].norm2.register_forward_hook(lambda *_: seen.append("norm2"))
        model(x)
        assert seen == ["norm2"]
        hook.remove()
        model(x)
        assert seen == ["norm2"]


def test_replaced_parts_run() -> None:
    """As adapters do it: a Linear of the block becomes another module after fusing."""
    case = CASES["BERT"]
    model, inputs = models.build(case).eval(), case.inputs()
    with fuse(model, mode="modules", example=inputs):
        block = model.encoder.layer[0].output
        block.dense = nn.Sequential(block.dense, nn.Tanh())
        changed = model(**inputs)[0]
        block, seen = model.encoder.layer[1].output, []
        block.dense.register_forward_hook(lambda *_: seen.append("dense"))
        model(**inputs)
        assert seen == ["dense"]
    assert (changed - model(**inputs)[0]).abs().max() < 1e-5 * changed.abs().max()


def silu() -> nn.Module:
    return nn.TransformerEncoderLayer(16, 2, 16, batch_first=True, activation=F.silu)


def odd() -> nn.Module:
    return nn.TransformerEncoderLayer(15, 3, 16, batch_first=True)


@pytest.mark.parametrize("build", [silu, odd])
def test_torchs_fast_path_is_named_only_where_it_runs(build: Callable[[], nn.Module]) -> None:
    model = build().eval()
    x = torch.randn(2, 5, model.linear1.in_features)
    with torch.no_grad(), fuse(model, mode="modules", example=x) as handle:
        after = model(x)
        assert (after - model._call_impl(x)).abs().max() < 1e-5
    assert handle.report.fused == 2, str(handle.report)


def test_frozen_it_runs_but_for_an_input_that_wants_a_gradient() -> None:
    model = nn.TransformerEncoderLayer(16, 2, 16, batch_first=True).eval().requires_grad_(False)
    with fuse(model, mode="modules") as handle:
        model(torch.randn(2, 5, 16, requires_grad=True))
    assert handle.report.fused == 2, str(handle.report)


def test_what_differs_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    from addnorm.fusing.local import torch_layers

    right = torch_layers.add_norm
    monkeypatch.setattr(torch_layers, "add_norm", lambda *args, **options: 1.001 * right(*args, **options))
    model, x = models.encoder(False).eval(), torch.randn(2, 5, WIDTH)
    before = model(x)
    with fuse(model, mode="modules") as handle:
        with pytest.warns(UserWarning, match="off float64"):
            model(x)
        assert (model(x) - before).abs().max() < 1e-5
    assert ["off float64" in site.reason for site in handle.report.sites] == [True] * 2 * L
    assert handle.report.fused == 0
