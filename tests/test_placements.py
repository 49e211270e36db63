"""Every placement against a naive float64 loop, its constants against its paper, and what building one refuses."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from addnorm import Residual, Stack, modules
from addnorm.placements import PLACEMENTS, Placement, Settings, Site, make
from addnorm.placements import base as base_module
from addnorm.placements import deepnorm as deepnorm_module
from addnorm.placements import sub_ln as sub_ln_module
from addnorm.stack.stack import sites

from .support.calls import routes
from .support.naive import LOOPS, Mixer
from .support.tolerance import same_bits

D, HIDDEN, LAYERS = 12, 20, 5
names = pytest.mark.parametrize("name", PLACEMENTS)
SPANNING = [name for name, member in PLACEMENTS.items() if member.spans_layer]


def mixers(count: int = 2 * LAYERS, dtype: torch.dtype = torch.float64) -> list[Mixer]:
    return [Mixer(D, HIDDEN).to(dtype) for _ in range(count)]


def build(name: str, dtype: torch.dtype = torch.float64, **options: object) -> Stack:
    """A stack with every parameter away from where it starts."""
    torch.manual_seed(1)
    stack = Stack(mixers(dtype=dtype), D, placement=name, dtype=dtype, **options)  # pyright: ignore[reportArgumentType]
    for parameter in stack.parameters():
        nn.init.normal_(parameter, 0.5, 0.3)
    return stack


def gradients(y: Tensor, x: Tensor, stack: Stack) -> dict[str, Tensor]:
    """Of a weighted sum of y. A parameter that a placement leaves alone has none, in the loop too."""
    leaves = {"x": x, **dict(stack.named_parameters())}
    weights = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).reshape(y.shape)
    found = torch.autograd.grad((y * weights).sum(), list(leaves.values()))
    return dict(zip(leaves, found, strict=True))


@names
@pytest.mark.parametrize("backend", routes())
def test_is_the_loop_of_its_formula(name: str, backend: str | None) -> None:
    stack = build(name, backend=backend)
    x = torch.randn(2, 3, D, dtype=torch.float64, requires_grad=True)
    got, want = stack(x), LOOPS[name](x, stack.sublayers, stack.placement)  # pyright: ignore[reportArgumentType]
    torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-11)
    theirs = gradients(want, x, stack)
    for parameter, gradient in gradients(got, x, stack).items():
        bound = 1e-10 * theirs[parameter].abs().max().item() + 1e-13
        error = (gradient - theirs[parameter]).abs().max().item()
        assert error <= bound, f"the gradient of {parameter} is {error:.3g} off, {bound:.3g} is allowed"


@names
def test_another_formula_is_seen(name: str) -> None:
    """The check above can tell the placements apart: no other loop of the same parameters gives this result."""
    stack = build(name)
    x = torch.randn(2, 3, D, dtype=torch.float64)
    got = stack(x)
    for other, loop in LOOPS.items():
        try:
            wrong = loop(x, stack.sublayers, stack.placement)  # pyright: ignore[reportArgumentType]
        except (AttributeError, TypeError, ValueError, KeyError, IndexError):
            continue  # needs parameters that this placement lacks
        assert other == name or not torch.allclose(got, wrong, rtol=1e-3), other


@names
def test_float32_is_as_exact_as_the_loop(name: str) -> None:
    stack, exact = build(name, torch.float32), build(name)
    exact.load_state_dict(stack.state_dict())
    x = torch.randn(2, 3, D)
    want = exact(x.double())
    loop = LOOPS[name](x, stack.sublayers, stack.placement)  # pyright: ignore[reportArgumentType]
    error, theirs = ((y.double() - want).abs().max() for y in (stack(x), loop))
    assert error <= 2 * theirs + 8 * torch.finfo(torch.float32).eps * want.abs().max()


@names
def test_dropout_and_paths_drop_as_stated(name: str) -> None:
    """In training the mean over many draws is the sum without dropout; in eval nothing is dropped, bit for bit."""
    stack, plain = build(name, dropout=0.3, drop_path=0.3), build(name)
    x = torch.randn(3, 2, D, dtype=torch.float64)
    assert not torch.equal(stack(x), stack(x))
    torch.manual_seed(5)
    first = stack(x)
    torch.manual_seed(5)
    same_bits("with the same seed", stack(x), first)
    same_bits("in eval", stack.eval()(x), plain(x))


def test_stochastic_depth_is_linear() -> None:
    """keep = 1 - (l / N) p, per sample, counted over the samples that pass a stack of ReLUs unchanged."""
    stack = Stack([nn.Identity() for _ in range(4)], 1, placement="rezero", sublayers_per_layer=1, drop_path=0.4)
    for scale in stack.placement.scales:  # pyright: ignore[reportGeneralTypeIssues]
        nn.init.ones_(scale)
    kept = stack(torch.ones(20_000, 1)).detach()
    keeps = [1 - 0.4 * layer / 4 for layer in range(1, 5)]
    no_drop = math.prod(1 + 1 / keep for keep in keeps)
    share = (kept - no_drop).abs().lt(1e-3).double().mean().item()
    want = math.prod(keeps)
    assert abs(share - want) < 5 * (want * (1 - want) / 20_000) ** 0.5


def test_a_path_alone_is_scaled_in_float32() -> None:
    """ReZero's sum has no kernel: x + x / 0.9, rounded to bfloat16 as torch rounds it, not with a rounded 1/0.9."""
    block = Residual(nn.Identity(), 1, placement="rezero", drop_path=0.1, dtype=torch.bfloat16)
    nn.init.ones_(block.placement.scales[0])  # pyright: ignore[reportIndexIssue, reportArgumentType]
    x = torch.linspace(1, 2, 200, dtype=torch.bfloat16).unsqueeze(-1)
    kept = x + (x.float() * (1 / 0.9)).bfloat16()
    y = block(x)
    assert y.dtype == torch.bfloat16
    assert torch.equal(y, torch.where(y == x, x, kept))


def test_rezero_leaves_the_branch_its_type() -> None:
    """...also where its scale, of shape (1,), is more exact."""
    block = Residual(nn.Identity(), 4, placement="rezero")
    block.load_state_dict({"placement.scales.0": torch.tensor([0.5])})
    x = torch.ones(2, 4, dtype=torch.bfloat16)
    assert torch.equal(block(x), 1.5 * x)
    assert block(x).dtype == torch.bfloat16


def test_layernorm_scaling_rounds_once_in_half_precision() -> None:
    """Its factor is not rounded into the weight, where it would act on all rows alike."""
    stack = Stack([nn.Identity()] * 2, 64, placement="layernorm_scaling", sublayers_per_layer=1, dtype=torch.bfloat16)
    weight = nn.init.normal_(stack.placement.norms[1].weight)  # pyright: ignore
    x = torch.randn(500, 64, dtype=torch.bfloat16)
    y, _ = stack.placement.combine(x, torch.zeros_like(x), stack.placement.sites[0])
    assert y.dtype == torch.bfloat16
    want = nn.functional.layer_norm(x.double(), (64,), weight.double()) / 2**0.5
    assert ((y - want).abs() <= 0.51 * torch.finfo(torch.bfloat16).eps * want.abs()).all()


@names
def test_parameters_have_a_dimension_and_can_be_reset(name: str) -> None:
    """...as fully sharded training needs them, whose models are built without memory."""
    stack = Stack([Mixer(D, HIDDEN) for _ in range(4)], D, placement=name, norm="scale")
    meta = Stack([Mixer(D, HIDDEN) for _ in range(4)], D, placement=name, norm="scale", device="meta")
    assert all(parameter.dim() for parameter in stack.parameters())
    meta.to_empty(device="cpu")
    for parameter in meta.parameters():
        nn.init.constant_(parameter, math.nan)
    for module in meta.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()  # pyright: ignore[reportCallIssue]
    for key, value in stack.placement.state_dict().items():
        assert torch.equal(meta.placement.state_dict()[key], value), key


@names
def test_final_norm_can_be_chosen(name: str) -> None:
    x = torch.randn(2, 3, D, dtype=torch.float64)
    if name == "residual_dual":
        with pytest.raises(ValueError, match="final_norm must be True"):
            build(name, final_norm=False)
        return
    without, with_norm = build(name, final_norm=False), build(name, final_norm=True)
    with_norm.load_state_dict(without.state_dict(), strict=False)
    assert isinstance(with_norm.placement.final_norm, nn.Module)
    torch.testing.assert_close(with_norm(x), with_norm.placement.final_norm(without(x)))


@names
def test_building_leaves_the_sublayers_alone(name: str) -> None:
    """...their weights, and the state of the generator."""
    sublayers = mixers()
    before = [{k: v.clone() for k, v in s.state_dict().items()} for s in sublayers]
    state = torch.get_rng_state()
    Stack(sublayers, D, placement=name, dtype=torch.float64)
    assert torch.equal(torch.get_rng_state(), state)
    for sublayer, was in zip(sublayers, before, strict=True):
        now = sublayer.state_dict()
        assert all(torch.equal(now[k], v) for k, v in was.items())


@pytest.mark.parametrize("name", [n for n in PLACEMENTS if n not in SPANNING])
def test_residual_is_a_stack_of_one(name: str) -> None:
    torch.manual_seed(0)
    sublayer = Mixer(D, HIDDEN)
    ends = PLACEMENTS[name].ends_in_norm
    block = Residual(sublayer, D, placement=name, depth=1, final_norm=ends)
    fresh = Mixer(D, HIDDEN)
    fresh.load_state_dict(sublayer.state_dict(), strict=False)
    whole = Stack([fresh], D, placement=name, sublayers_per_layer=1)
    x = torch.randn(2, 3, D)
    same_bits("y", block(x), whole(x))


@pytest.mark.parametrize("name", [n for n in PLACEMENTS if n not in (*SPANNING, "residual_dual")])
def test_residuals_in_a_row_are_a_stack(name: str) -> None:
    """...each knowing its layer, with the final norm, if any, in the last one. ResiDual carries two streams on."""
    stack = Stack(mixers(4), D, placement=name, sublayers_per_layer=1, dtype=torch.float64)
    ends = PLACEMENTS[name].ends_in_norm
    blocks = [
        Residual(fresh, D, placement=name, depth=4, layer=i, final_norm=ends and i == 3, dtype=torch.float64)
        for i, fresh in enumerate(mixers(4))
    ]
    for index, block in enumerate(blocks):
        block.sublayer.load_state_dict(stack.sublayers[index].state_dict())
    x = torch.randn(2, 3, D, dtype=torch.float64)
    torch.testing.assert_close(nn.Sequential(*blocks)(x), stack(x))


# -- constants and initialisation, from the papers ---------------------------------------------------


@pytest.mark.parametrize("layers", [1, 6, 12, 100, 1000])
def test_deepnorm_meets_the_paper_s_bound(layers: int) -> None:
    """One stack: its 2N sublayers change the output by at most 2N (v^2 + w^2) / alpha^2 times a constant, v = w = beta,
    and alpha and beta are chosen such that this is 1. Post-norm, with alpha = beta = 1, has 4N."""
    alpha, beta = deepnorm_module.constants(layers)
    assert math.isclose(2 * layers * 2 * beta**2 / alpha**2, 1, rel_tol=1e-12)
    assert math.isclose(alpha * beta, 2**-0.5, rel_tol=1e-12)  # (2N / 8N)^(1/4)


@pytest.mark.parametrize("m", [6, 60, 600])
def test_deepnorm_of_a_decoder_meets_the_paper_s_bound(m: int) -> None:
    """3M sublayers instead of 2N, bounded in the same way."""
    alpha, beta = deepnorm_module.constants(m, encoder_layers=6)
    assert math.isclose(3 * m * (2 * beta**2) / alpha**2, 1, rel_tol=1e-12)
    assert math.isclose(alpha * beta, 2**-0.5, rel_tol=1e-12)


@pytest.mark.parametrize(("n", "m"), [(6, 6), (18, 6), (100, 100), (3, 60)])
def test_deepnorm_of_an_encoder_meets_the_paper_s_bound(n: int, m: int) -> None:
    """In the paper's bound the M cross-attentions hand on the encoder's change, v_d w_d / alpha_d each; that is
    2N (v_e^2 + w_e^2) / alpha_e^2. That product is 1, and alpha beta = 2^(-1/2) as in the other stacks, for
    0.8138 (N^4 M)^(1/16) and 0.8689 (N^4 M)^(-1/16), which the paper rounds to 0.81 and 0.87."""
    alpha_d, beta_d = deepnorm_module.constants(m, encoder_layers=n)
    handed_on = m * beta_d**2 / alpha_d
    ratio = (1 / (handed_on * 4 * n)) ** 0.5  # beta_e / alpha_e
    exact_alpha, exact_beta = (2**-0.5 / ratio) ** 0.5, (2**-0.5 * ratio) ** 0.5
    alpha, beta = deepnorm_module.constants(n, decoder_layers=m)
    size = (n**4 * m) ** (1 / 16)
    assert abs(exact_alpha / size - alpha / size) < 0.005  # half a unit of the paper's last digit
    assert abs(exact_beta * size - beta * size) < 0.005
    assert round(alpha / size, 9) == 0.81
    assert round(beta * size, 9) == 0.87  # and not 1.15, as one public implementation has it
    stack = Stack(mixers(2 * n), D, placement="deepnorm", decoder_layers=m)
    assert stack.placement.alpha == alpha


def test_sub_ln_gains() -> None:
    assert math.isclose(sub_ln_module.gain(12), math.log(24) ** 0.5)
    assert math.isclose(sub_ln_module.gain(6, encoder_layers=12), math.log(18) ** 0.5)
    assert math.isclose(sub_ln_module.gain(12, decoder_layers=6), (math.log(18) * math.log(24) / 3) ** 0.5)


@pytest.mark.parametrize(("layers", "initial"), [(18, 0.1), (24, 1e-5), (25, 1e-6)])
def test_layerscale_starts_by_depth(layers: int, initial: float) -> None:
    stack = Stack([nn.Identity()] * (2 * layers), 4, placement="layerscale")
    assert all(torch.equal(scale, torch.full((4,), initial)) for scale in stack.placement.scales)  # pyright: ignore[reportGeneralTypeIssues]


# -- bad input --------------------------------------------------------------------------------------


def test_unknown_names_list_what_there_is() -> None:
    with pytest.raises(ValueError, match="placement='middle' is unknown") as error:
        Residual(nn.Linear(4, 4), 4, placement="middle")
    assert all(repr(name) in str(error.value) for name in PLACEMENTS)
    with pytest.raises(ValueError, match=r"norm='batch' is unknown; there are: 'layer', 'rms'"):
        Stack([nn.Linear(4, 4)] * 2, 4, norm="batch")


@pytest.mark.parametrize("name", ["deepnorm", "mix_ln", "layerscale", "sub_ln"])
def test_missing_depth_is_named(name: str) -> None:
    with pytest.raises(ValueError, match="pass depth="):
        Residual(Mixer(D, HIDDEN), D, placement=name)


@pytest.mark.parametrize("name", SPANNING)
def test_what_spans_a_layer_needs_one(name: str) -> None:
    with pytest.raises(ValueError, match="spans the sublayers of a layer"):
        Residual(Mixer(D, HIDDEN), D, placement=name)
    with pytest.raises(ValueError, match="spans the sublayers of a layer"):
        Stack(mixers(), D, placement=name, sublayers_per_layer=1)


@pytest.mark.parametrize("name", ["sub_ln", "normformer", "hybrid_norm"])
def test_missing_slots_are_named(name: str) -> None:
    with pytest.raises(ValueError, match=r"sublayer \d \(Linear\) must offer \w+_norm = addnorm.Slot\(width\)"):
        Stack([nn.Linear(D, D) for _ in range(4)], D, placement=name)
    shared = mixers()
    Stack(shared, D, placement=name)
    with pytest.raises(ValueError, match="holds a norm already"):
        Stack(shared, D, placement=name)


def test_slots_are_filled_all_or_none() -> None:
    fits = Mixer(D, HIDDEN)
    with pytest.raises(ValueError, match="sublayer 1"):
        Stack([fits, nn.Linear(D, D)], D, placement="sub_ln")
    assert fits.inner_norm.norm is None
    Stack([fits, fits], D, placement="sub_ln")  # one sublayer at two sites has one norm
    assert fits.inner_norm.norm is not None


@pytest.mark.parametrize(("name", "calls"), [("pre", 11), ("post", 10), ("sandwich", 21), ("parallel", 6)])
def test_one_call_for_a_sum_and_the_norm_behind_it(name: str, calls: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pre-norm's ten sublayers: the first norm, then each sum with the next norm, the last sum with the final one."""
    seen = []

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *args, **options: (seen.append(function), function(*args, **options))[1]

    for module in (base_module, modules):
        for function in ("add_norm", "add_norm_stream"):
            monkeypatch.setattr(module, function, counted(getattr(module, function)))
    Stack(mixers(dtype=torch.float32), D, placement=name)(torch.randn(2, 3, D))
    assert len(seen) == calls


def test_options_are_those_of_the_placement() -> None:
    with pytest.raises(TypeError, match="placement='deepnorm' has no option 'alpha'; it has: decoder_layers, enc"):
        Stack(mixers(), D, placement="deepnorm", alpha=2)
    with pytest.raises(TypeError, match="placement='post' has no option 'alpha'; it has: none"):
        Residual(nn.Linear(4, 4), 4, alpha=2)
    with pytest.raises(ValueError, match="at most one of them"):
        Stack(mixers(), D, placement="deepnorm", encoder_layers=2, decoder_layers=2)
    with pytest.raises(ValueError, match="decoder_layers must be at least 1, got 0"):
        Stack(mixers(), D, placement="sub_ln", decoder_layers=0)
    with pytest.raises(ValueError, match=r"post_fraction must be in \[0, 1\], got 1.5"):
        Stack(mixers(), D, placement="mix_ln", post_fraction=1.5)


def test_table_holds_each_by_its_name() -> None:
    assert set(PLACEMENTS) == set(LOOPS)
    made = make("post", sites(2, 1), Settings(d_model=4))
    assert isinstance(made, Placement)
    assert made.sites[1] == Site(index=1, layer=1, layers=2, kind="ffn", last=True)
    for member in PLACEMENTS.values():
        assert member.__doc__
        assert "When to choose it" in member.__doc__
        assert "costs" in member.__doc__
        assert re.search(r"Source: .*\(.*arXiv:\d{4}\.\d{5}\)", member.__doc__)
