"""`Residual` and `Stack`: what passes through, and what comes back."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import addnorm
from addnorm import Residual, Stack

from .support.tolerance import same_bits

D = 8
DOCS = Path(__file__).parent.parent / "docs" / "placements.md"


def linears(count: int = 4) -> list[nn.Module]:
    return [nn.Linear(D, D) for _ in range(count)]


class Scaled(nn.Module):
    """x * factor + shift, and everything that it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[dict[str, Any]] = []

    def forward(self, x: Tensor, factor: float = 1.0, **others: Any) -> tuple[Tensor, str, int]:
        self.seen.append({"factor": factor, **others})
        return x * factor, "weights", 7


class Pooling(nn.Module):
    """A token mixer with no parameters (PoolFormer)."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = nn.AvgPool1d(3, stride=1, padding=1, count_include_pad=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.pool(x.transpose(1, 2)).transpose(1, 2) - x


ANY = {
    "linear": lambda: nn.Linear(D, D),
    "activation": nn.GELU,
    "normalisation": lambda: nn.LayerNorm(D),
    "dropout": lambda: nn.Dropout(0.5),
    "pooling": Pooling,
    "encoder layer": lambda: nn.TransformerEncoderLayer(D, 2, 16, batch_first=True),
}


@pytest.mark.parametrize("kind", ANY)
@pytest.mark.parametrize("placement", ["post", "pre"])
def test_residual_wraps_any_module(kind: str, placement: str) -> None:
    sublayer = ANY[kind]().eval()
    block = Residual(sublayer, D, placement=placement).eval()
    x = torch.randn(2, 5, D)
    norm = nn.LayerNorm(D)
    want = norm(x + sublayer(x)) if placement == "post" else x + sublayer(norm(x))
    torch.testing.assert_close(block(x), want)


def test_arguments_pass_and_the_rest_of_a_tuple_follows_y() -> None:
    block = Residual(Scaled(), D)
    x = torch.randn(2, D)
    y, *rest = block(x, 3.0, mask="m")
    torch.testing.assert_close(y, nn.functional.layer_norm(4 * x, (D,)))
    assert rest == ["weights", 7]
    assert block.sublayer.seen == [{"factor": 3.0, "mask": "m"}]


def test_residual_of_torch_s_attention() -> None:
    block = Residual(nn.MultiheadAttention(D, 2, batch_first=True), D).eval()
    x = torch.randn(2, 5, D)
    y, weights = block(x, x, x)
    assert y.shape == x.shape
    assert weights.shape == (2, 5, 5)


def test_each_sublayer_gets_its_own_arguments() -> None:
    a, b = Scaled(), Scaled()
    stack = Stack([a, b, a, b], D)
    x = torch.randn(2, D)
    assert isinstance(stack(x), Tensor)
    stack(x, [{"factor": 2.0}, {}], cache="c")
    stack(x, [{"i": 0}, {"i": 1}, {"i": 2}, {"cache": "own", "i": 3}], cache="c")
    assert a.seen[2:4] == [{"factor": 2.0, "cache": "c"}] * 2
    assert b.seen[2:4] == [{"factor": 1.0, "cache": "c"}] * 2
    assert [s["i"] for s in a.seen[4:]] == [0, 2]
    assert b.seen[5]["cache"] == "own"
    with pytest.raises(ValueError, match="sublayer_kwargs has 3 mappings: there must be one for each of the 4"):
        stack(x, [{}] * 3)
    for wrong, got in (({"cache": 1}, "dict"), ([{}, None], "list of dict and NoneType"), ("ab", "str")):
        with pytest.raises(TypeError, match=f"sublayer_kwargs must be a list of mappings.*, got {got}$"):
            stack(x, wrong)


@pytest.mark.parametrize("placement", ["pre", "post", "residual_dual", "layerscale"])
@pytest.mark.parametrize("every", [1, 2, 5])
def test_checkpointing_changes_no_bit(placement: str, every: int) -> None:
    """...with dropout and stochastic depth, whose draws are made again in the backward."""
    plain = Stack(linears(8), D, placement=placement, dropout=0.2, drop_path=0.3)
    kept = Stack(copy.deepcopy(list(plain.sublayers)), D, placement=placement, dropout=0.2, drop_path=0.3,
                 checkpoint_every=every)  # fmt: skip
    kept.load_state_dict(plain.state_dict())
    x = torch.randn(6, 3, D)
    found = []
    for stack in (plain, kept):
        torch.manual_seed(2)
        y = stack(x)
        found.append((y, *torch.autograd.grad(y.square().sum(), list(stack.parameters()))))
    for index, (a, b) in enumerate(zip(*found, strict=True)):
        same_bits(f"result {index}", b, a)


def test_checkpointing_keeps_less() -> None:
    def saved(every: int | None) -> int:
        stack = Stack(linears(16), D, checkpoint_every=every)
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
            stack(torch.randn(64, D, requires_grad=True))
        return sum(sizes)

    assert saved(2) < saved(None) / 2


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # torch's own, while it traces
@pytest.mark.parametrize("placement", ["pre", "post", "layerscale", "parallel"])
def test_compiles_whole_and_once(placement: str) -> None:
    torch._dynamo.reset()
    stack = Stack(linears(), D, placement=placement)
    compiled = torch.compile(stack, fullgraph=True, backend="aot_eager")
    for turn in range(2):
        x = torch.randn(2, 5, D, requires_grad=True)
        with torch._dynamo.config.patch(error_on_recompile=turn > 0):
            y = compiled(x)
        torch.testing.assert_close(y, stack(x))
        y.sum().backward()


def test_state_dicts_copy_and_load() -> None:
    stack = Stack(linears(), D, placement="peri")
    other = copy.deepcopy(stack)
    x = torch.randn(2, D)
    same_bits("y", other(x), stack(x))
    names = set(stack.state_dict())
    assert {"sublayers.0.weight", "placement.norms.0.weight", "placement.final_norm.bias"} <= names
    half = Stack([s.bfloat16() for s in linears()], D, norm="rms", weight_offset=1.0, dtype=torch.bfloat16)
    assert half(x.bfloat16()).dtype == torch.bfloat16
    assert not half.placement.norms[0].weight.any()  # pyright: ignore[reportIndexIssue]


@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("final_norm", [False, True])
def test_weights_of_a_torch_encoder(norm_first: bool, final_norm: bool) -> None:
    """The code in docs/placements.md; with a padding mask."""
    layer = nn.TransformerEncoderLayer(D, 2, 16, dropout=0.0, batch_first=True, norm_first=norm_first)
    encoder = nn.TransformerEncoder(layer, 3, nn.LayerNorm(D) if final_norm else None, enable_nested_tensor=False)
    for parameter in encoder.parameters():
        nn.init.normal_(parameter, 0.1, 0.3)
    chapter = DOCS.read_text().partition("## Weights of a torch encoder")[2]
    names: dict[str, Any] = {"addnorm": addnorm, "nn": nn, "encoder": encoder, "d": D, "heads": 2}
    exec(chapter.split("```")[1].removeprefix("python"), names)
    x, padding = torch.randn(2, 7, D), torch.arange(7) >= torch.tensor([[7], [5]])
    got = names["stack"](x, [{"key_padding_mask": padding}, {}])
    want = encoder(x, src_key_padding_mask=padding)
    torch.testing.assert_close(got[~padding], want[~padding], rtol=1e-4, atol=1e-5)


def test_describe_says_the_end_once() -> None:
    ends = {name: Stack(linears(), D, placement=name).describe().count("end: ") for name in ("residual_dual", "pre")}
    assert ends == {"residual_dual": 1, "pre": 1}


def test_describe_names_no_norm_where_there_is_none() -> None:
    blocks = [addnorm.AddNorm(D) for _ in range(4)]  # a sublayer's norm is not the placement's
    for sublayers in (linears(), blocks):
        said = Stack(sublayers, D, placement="rezero").describe()
        assert said.startswith("rezero: 4 sublayers in 2 layers, width 8\n")


def test_a_shortcut_maps_the_skip() -> None:
    sublayer, shortcut = nn.Linear(D, 12), nn.Linear(D, 12, bias=False)
    x = torch.randn(2, 5, D)
    post = Residual(sublayer, 12, shortcut=shortcut)
    torch.testing.assert_close(post(x), nn.functional.layer_norm(shortcut(x) + sublayer(x), (12,)))
    pre = Residual(sublayer, D, placement="pre", shortcut=shortcut)
    torch.testing.assert_close(pre(x), shortcut(x) + sublayer(nn.functional.layer_norm(x, (D,))))
    with pytest.raises(TypeError, match=r"shortcut must be a torch.nn.Module, got str"):
        Residual(sublayer, D, shortcut="conv")  # pyright: ignore[reportArgumentType]


AFTER, BEFORE = ("post", "deepnorm", "admin"), ("pre", "sub_ln", "layernorm_scaling")
NEITHER = ("sandwich", "peri", "layerscale")


@pytest.mark.parametrize("final_norm", [False, True])
@pytest.mark.parametrize("placement", [*AFTER, *BEFORE, *NEITHER, "rezero", "first of mix_ln", "last of mix_ln"])
def test_a_shortcut_may_change_the_width_where_the_norms_allow_it(placement: str, final_norm: bool) -> None:
    name, layer = placement.split()[-1], 3 if placement.startswith("last") else 0
    allowed = {
        D: not final_norm and placement in (*BEFORE, "rezero", "last of mix_ln"),
        12: placement in (*AFTER, "rezero", "first of mix_ln"),
    }
    x = torch.randn(2, 5, D)
    for d_model, allows in allowed.items():
        sublayer = nn.Linear(D, 12)
        sublayer.inner_norm = addnorm.Slot(D)
        block = Residual(
            sublayer, d_model, name, depth=4, layer=layer, final_norm=final_norm, shortcut=nn.Linear(D, 12)
        )
        if allows:
            assert block(x).shape == (2, 5, 12)
            continue
        message = (
            rf"x has shape \(2, 5, 8\): its last dimension must be d_model = {d_model}|"
            rf"shortcut maps the skip to width 12: with placement='{name}'.* must be d_model = {d_model}"
        )
        with pytest.raises(ValueError, match=message):
            block(x)


def test_a_width_that_can_not_change_is_said() -> None:
    block = Residual(nn.Linear(D, 12), D, "sandwich", final_norm=True, shortcut=nn.Linear(D, 12))
    with pytest.raises(ValueError, match="'sandwich' with a final norm its width must be d_model = 8, as before"):
        block(torch.randn(2, D))


def test_describe_says_what_runs() -> None:
    assert "gain 0.5 on o, fc2" in Stack(linears(), D).describe()
    stack = Stack(linears(), D, placement="layernorm_scaling", norm="rms", dropout=0.1)
    assert stack.describe() == (
        "layernorm_scaling: 4 sublayers in 2 layers, width 8, rms norm, dropout 0.1\n"
        "  h <- h + drop(f(N(h) / sqrt(l))), l the layer, from 1\n"
        "  end: N(h)"
    )
    assert "Stack(\n  8, placement='layernorm_scaling'" in repr(stack)


@pytest.mark.parametrize("module", [Stack(linears(), D, dropout=0.1), Residual(nn.Linear(8, 8), 8, dropout=0.1)])
def test_repr_shows_the_dropout_once(module: nn.Module) -> None:
    """It is the sums', not the norms'."""
    assert repr(module).count("dropout=") == 1
    assert "dropout=0.1, drop_path=0.0" in repr(module)
