"""The modes of `fuse`: what each fuses, that nothing else changes, and that who compiles around is told."""

from __future__ import annotations

import copy
import functools
import pickle
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from addnorm.fusing import fuse, measured
from addnorm.fusing.handle import automatic

from .support import norms_by_hand as hand

pytest.importorskip("transformers")

from .support import models
from .test_fusing_models import assert_as_good, cast, quiet, results

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:torch.*"),  # Inductor's own imports
    pytest.mark.filterwarnings("ignore:.*is deprecated:FutureWarning:torch.*"),
]

CASES = models.cases()
L, WIDTH = models.TINY.layers, models.TINY.width
MODES = ("eager", "inductor", "modules")


def run(name: str, mode: str) -> tuple[Any, list[dict[str, Tensor]], dict[str, Tensor], dict[str, Tensor]]:
    """The handle, undone; two passes of the fused model, one of the original, and in float64."""
    torch.manual_seed(1)
    inputs = CASES[name].inputs()
    model = quiet(models.build(CASES[name]))
    before, exact = results(model, inputs), results(copy.deepcopy(model).double(), cast(inputs, torch.float64))
    handle = fuse(model, mode=mode)
    after = [results(model, inputs), results(model, inputs)]
    handle.undo()
    for key, value in results(model, inputs).items():
        assert torch.equal(value, before[key])
    assert all(module._compiled_call_impl is None for module in model.modules())
    return handle, after, before, exact


@pytest.mark.parametrize("name", ["BERT", "nn.TransformerEncoder, pre-norm"])
def test_compiled(name: str) -> None:
    handle, after, before, exact = run(name, "inductor")
    assert (handle.report.fused, handle.report.skipped) == (CASES[name].fused, CASES[name].left), str(handle.report)
    assert {site.backend for site in handle.report.sites} == {"inductor"}  # no dropout is drawn: see measured.py
    assert handle.mode == handle.report.to_dict()["mode"] == "inductor"
    for found in after:
        unused = {*found} - {*before}  # their gradients are None; of compiled code they are zeros
        assert all(not found.pop(key).any() for key in unused)
        assert_as_good(found, before, exact)


@pytest.mark.parametrize("mode", MODES)
def test_dropout_has_its_rate_and_repeats(mode: str) -> None:
    layer = nn.TransformerEncoderLayer(WIDTH, 2, 48, dropout=0.3, batch_first=True)
    for p in (layer.linear2.weight, layer.self_attn.out_proj.weight, layer.self_attn.out_proj.bias):
        nn.init.zeros_(p)
    nn.init.constant_(layer.linear2.bias, 1000.0)  # beside which the normed stream is nothing
    x = torch.randn(64, 20, WIDTH)
    with fuse(layer, mode=mode):
        layer(x)
        outputs = []
        for seed in (1, 1, 2):
            torch.manual_seed(seed)
            outputs.append(layer(x))
    assert torch.equal(outputs[0], outputs[1])
    assert not torch.equal(outputs[0], outputs[2])
    dropped, count = (outputs[2] < 0).double().mean().item(), x.numel()
    assert abs(dropped - 0.3) < 5 * (0.3 * 0.7 / count) ** 0.5 + 2**-16


@pytest.mark.parametrize("mode", MODES)
def test_checkpointed_code_draws_its_dropout_again(mode: str) -> None:
    """Rows of a LayerNorm have a constant sum of squares: its gradient is rounding, unless the backward has z of
    another mask than the forward."""

    class Checkpointed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.TransformerEncoderLayer(WIDTH, 2, 48, dropout=0.3, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            return checkpoint(self.layer, x, use_reentrant=False)

    model, x = Checkpointed(), torch.randn(3, 5, WIDTH, requires_grad=True)
    with fuse(model, mode=mode):
        for _ in range(3):
            y = model(x)
            (gradient,) = torch.autograd.grad(y.square().sum(), x)
            (scale,) = torch.autograd.grad(model(x).sum(-1).square().sum() + model(x)[..., 0].sum(), x)
            assert gradient.norm() < 1e-4 * scale.norm()


@pytest.mark.parametrize("mode", MODES)
def test_lengths_masks_and_eval(mode: str) -> None:
    case = CASES["BERT"]
    model = models.build(case).eval()
    inputs = case.inputs()
    lengths = [{name: t[:, :length] for name, t in inputs.items()} for length in (6, 5, 4, 3)]
    before = [model(**each)[0] for each in lengths]
    with fuse(model, mode=mode) as handle:
        outputs = [model(**each)[0] for each in (lengths[0], *lengths)][1:]
        captures = getattr(handle._call, "captures", 0)
        assert captures <= 2 + 2 * (mode == "inductor")  # one for the first length, one for all others; twice
    for after, old in zip(outputs, before, strict=True):
        assert (after - old).abs().max() < 1e-5 * old.abs().max()


@pytest.mark.filterwarnings("ignore:addnorm.fuse found nothing")  # in mode "modules", without gradients
@pytest.mark.parametrize("mode", ["eager", "modules"])
def test_generate_with_its_cache(mode: str) -> None:
    ends = {"bos_token_id": 0, "eos_token_id": 49}
    config = models.transformers.GPT2Config(n_embd=WIDTH, n_layer=L, n_head=2, vocab_size=50, **ends)
    torch.manual_seed(0)
    model = models.transformers.GPT2LMHeadModel(config).eval()
    ids, mask = torch.randint(1, 48, (2, 6)), torch.ones(2, 6, dtype=torch.long)
    mask[1, :2] = 0

    def written(length: int) -> Tensor:
        inputs = {"attention_mask": mask[:, :length], "eos_token_id": None, "max_new_tokens": 8, "do_sample": False}
        return model.generate(ids[:, :length], **inputs)

    before, captures = {length: written(length) for length in (6, 5, 4)}, []
    with fuse(model, mode=mode) as handle:
        for length, tokens in before.items():
            assert torch.equal(written(length), tokens)
            captures.append(getattr(handle._call, "captures", 0))
    assert captures[2] == captures[1] <= 4  # prompt and step, each for one length and for all


@pytest.mark.parametrize("mode", MODES)
def test_copies_and_saves_are_of_the_plain_model(mode: str) -> None:
    model = models.encoder(False)
    x, keys = torch.randn(2, 5, WIDTH), [*model.state_dict()]
    handle = fuse(model, mode=mode, example=x)
    assert [*model.state_dict()] == keys
    twins = [copy.deepcopy(model), copy.copy(model), pickle.loads(pickle.dumps(model))]
    for twin in twins:
        assert type(twin) is type(model)
        assert not {"forward", "__getstate__", "_compiled_call_impl"} & {*twin.__dict__}
    for twin in (twins[0], twins[2]):
        assert all(module._compiled_call_impl is None for module in twin.modules())
    handle.undo()
    assert not {"forward", "__getstate__", "_compiled_call_impl"} & {*model.__dict__}


@pytest.mark.parametrize("mode", MODES)
def test_who_compiles_around_is_told(mode: str) -> None:
    model, x = models.encoder(False), torch.randn(2, 5, WIDTH)
    with fuse(model, mode=mode, example=x):
        with pytest.warns(UserWarning, match="nothing is fused there"):
            torch.compile(model, backend="eager")(x)
        with pytest.warns(UserWarning, match="FusePass"):
            torch.compile(lambda x: 2 * model(x), backend="eager", fullgraph=True)(x)
    torch.compile(model, backend="eager")(x)  # undone, it is silent again


def wrapped(module: nn.Module) -> None:
    """As accelerate and others wrap a forward."""
    inner = module.forward

    @functools.wraps(inner)
    def outer(*args: Any, **kwargs: Any) -> Any:
        return inner(*args, **kwargs)

    module.forward = outer


@pytest.mark.parametrize("mode", ["eager", "inductor"])
def test_a_wrapped_method_is_called_by_its_modules_name(mode: str) -> None:
    model, x = quiet(models.encoder(False)), torch.randn(2, 3, WIDTH)
    for layer in model.layers:
        wrapped(layer)
    with fuse(model, mode=mode) as handle:
        for _ in range(2):  # the second is compiled in mode "inductor"
            model(x)
    found = [(site.norm, site.call, site.fused) for site in handle.report.sites]
    assert found == [(f"layers.{i}.norm{j}", 0, True) for i in range(L) for j in (1, 2)], str(handle.report)
    assert {site.backend for site in handle.report.sites} == {"cpu" if mode == "eager" else "inductor"}


def test_a_shared_layer_has_several_calls() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = hand.PostNorm(WIDTH)
            self.norm = nn.LayerNorm(WIDTH)

        def forward(self, x: Tensor) -> Tensor:
            for _ in range(3):
                x = self.norm(x + torch.tanh(x))
            return x

    for mode, fused, plain in (("eager", 3, 0), ("modules", 0, 3)):
        handle = fuse(Shared().bfloat16(), mode=mode, example=torch.randn(2, 3, WIDTH, dtype=torch.bfloat16))
        sites = [site for site in handle.report.to_dict()["sites"] if site["norm"] == "norm"]
        assert [site["call"] for site in sites] == [0, 1, 2]
        assert (handle.report.fused, handle.report.plain) == (fused, plain)


@pytest.mark.parametrize("mode", ["eager", "modules"])
def test_a_norm_alone_is_fused_where_that_gains(mode: str) -> None:
    class Alone(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.norm, self.linear = nn.LayerNorm(width), nn.Linear(width, width)

        def forward(self, x: Tensor) -> Tensor:
            x = self.norm(torch.tanh(x))
            return self.norm(x + self.linear(x))

    for width, dtype, trains, infers in (
        (measured.NARROW, torch.float32, True, False),
        (measured.NARROW - 1, torch.float32, False, False),
        (measured.NARROW - 1, torch.bfloat16, True, True),
    ):
        for training, gains in ((True, trains), (False, infers)):
            fused = gains or mode == "eager"
            model, x = Alone(width).to(dtype), torch.randn(2, width, dtype=dtype)
            with fuse(model, mode=mode) as handle, torch.set_grad_enabled(training), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # that nothing is fused
                model(x)
            alone = handle.report.sites[0]
            assert alone.plain is fused, str(handle.report)
            assert fused or measured.TORCH_FASTER in alone.reason


def test_auto_can_be_asked() -> None:
    handle = fuse(models.encoder(False))
    assert handle.mode == automatic() == "eager"
    with torch._dynamo.config.patch(disable=True):
        assert fuse(models.encoder(False)).mode == "modules"


def test_another_mode_on_top_is_refused() -> None:
    model = models.encoder(False)
    handle = fuse(model, mode="modules")
    assert fuse(model) is fuse(model, mode="modules") is handle
    with pytest.raises(ValueError, match="is fused in mode 'modules' already"):
        fuse(model, mode="eager")


def test_a_part_fused_before_the_whole() -> None:
    model, x = models.encoder(False), torch.randn(2, 5, WIDTH)
    for inner, outer in (("modules", "eager"), ("eager", "modules"), ("modules", "modules")):
        part = fuse(model.layers[0], mode=inner)
        whole = fuse(model, mode=outer, example=x)
        assert whole.report.fused >= 2 * (L - 1)
        whole.undo()
        assert isinstance(model.layers[0]._compiled_call_impl, type(part._call))
        part.undo()
        assert all(module._compiled_call_impl is None for module in model.modules())


def test_the_unknown_says_so() -> None:
    model = models.encoder(False).train()
    with fuse(model, mode="modules") as handle:
        with pytest.warns(UserWarning, match="no finite number"):
            model(torch.full((2, 5, WIDTH), torch.nan))
        model(torch.randn(2, 5, WIDTH))
        assert (handle.report.fused, len(handle.report.sites)) == (2 * L, 2 * L)


@pytest.mark.filterwarnings("ignore:addnorm.fuse found nothing", "ignore:.*nested tensors is in prototype stage")
@pytest.mark.parametrize("mode", ["eager", "modules"])
@pytest.mark.parametrize("nested", [False, True])
def test_torchs_fast_path_is_left_to_run(mode: str, nested: bool) -> None:
    layer = nn.TransformerEncoderLayer(WIDTH, 2, 48, batch_first=True)
    model, x = nn.TransformerEncoder(layer, L, enable_nested_tensor=nested).eval(), torch.randn(2, 5, WIDTH)
    padding = torch.tensor([[False] * 5, [False] * 3 + [True] * 2])
    with torch.no_grad():
        before = model(x, src_key_padding_mask=padding)
        handle = fuse(model, mode=mode)
        for _ in range(3):
            assert torch.equal(model(x, src_key_padding_mask=padding), before)
    sites = handle.report.sites
    assert len(sites) == 2 * L
    assert all("fast path" in site.reason for site in sites)
    model.train()(x, src_key_padding_mask=padding)
    assert (handle.report.fused, len(handle.report.sites)) == (2 * L, 2 * L)
    handle.undo()
