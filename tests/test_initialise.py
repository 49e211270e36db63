"""What `Stack.initialise` draws, held to each placement's paper, and what it refuses to change."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from addnorm import Residual, Slot, Stack
from addnorm.placements import PLACEMENTS

from .support.naive import Mixer

D, HIDDEN, LAYERS = 12, 20, 5


def mixers(dtype: torch.dtype) -> list[Mixer]:
    return [Mixer(D, HIDDEN).to(dtype) for _ in range(2 * LAYERS)]


def parametrised(linear: nn.Linear) -> nn.Module:
    """Its matrix is computed from a parameter of another name, which must not be passed over."""
    return parametrize.register_parametrization(linear, "weight", nn.Identity())


class Attention(nn.Module):
    def __init__(self, d: int, packed: bool) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(d, d) for _ in range(3))
        self.in_proj = nn.Linear(d, 3 * d) if packed else None
        self.out_proj, self.inner_norm = nn.Linear(d, d), Slot(d)

    def forward(self, x: Tensor) -> Tensor:
        return self.out_proj(self.inner_norm(self.v_proj(x).mean(-2, keepdim=True).expand(x.shape)))


class FFN(nn.Module):
    def __init__(self, d: int) -> None:
        super().__init__()
        self.fc1, self.fc2, self.inner_norm = nn.Linear(d, 4 * d), nn.Linear(4 * d, d), Slot(4 * d)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.inner_norm(self.fc1(x).relu()))


def spread(weight: Tensor) -> float:
    """The weight's standard deviation over Glorot's, which is the gain."""
    rows, columns = weight.shape
    return weight.std().item() / (2 / (rows + columns)) ** 0.5


@pytest.mark.parametrize(
    ("name", "inner", "out"),
    [("deepnorm", 48**-0.25, 48**-0.25), ("sub_ln", math.log(12) ** 0.5, math.log(12) ** 0.5), ("pre", 1, 12**-0.5)],
)
def test_initialise_draws_with_the_paper_s_gains(name: str, inner: float, out: float) -> None:
    d = 96
    stack = Stack([Attention(d, True) if i % 2 == 0 else FFN(d) for i in range(12)], d, placement=name)
    said = stack.initialise()
    attention, ffn = stack.sublayers[0], stack.sublayers[1]
    assert isinstance(attention, Attention)
    assert isinstance(ffn, FFN)
    assert isinstance(attention.in_proj, nn.Linear)
    q, k, v = (part for part in attention.in_proj.weight.chunk(3))
    wanted = [(q, 1.0), (k, 1.0), (v, inner), (attention.q_proj.weight, 1.0), (attention.k_proj.weight, 1.0),
              (attention.v_proj.weight, inner), (attention.out_proj.weight, out), (ffn.fc1.weight, inner),
              (ffn.fc2.weight, out)]  # fmt: skip
    for weight, gain in wanted:
        assert abs(spread(weight) / gain - 1) < 5 / (2 * weight.numel()) ** 0.5
    assert said["0.out_proj.weight"] == pytest.approx(out)
    assert said["1.fc1.weight"] == pytest.approx(inner)
    assert stack.initialise() == said  # a second time scales nothing twice


def test_initialise_of_sequential_and_linear() -> None:
    made = [nn.Linear(64, 64), nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 64))]
    said = Stack(made, 64).initialise()
    assert said == pytest.approx({"0.weight": 2**-0.5, "1.0.weight": 1.0, "1.2.weight": 2**-0.5})


def test_admin_profiles_its_branches() -> None:
    stack = Stack(mixers(torch.float64), D, placement="admin", dtype=torch.float64)
    x = torch.randn(4, 3, D, dtype=torch.float64)
    with pytest.raises(ValueError, match="needs a sample"):
        stack.initialise()
    found, total, h = stack.initialise(x), 1.0, x
    for index, f in enumerate(stack.sublayers):
        omega = stack.placement.scales[index]  # pyright: ignore[reportIndexIssue]
        torch.testing.assert_close(omega, torch.full((D,), total**0.5, dtype=torch.float64))
        assert found[f"placement.scales.{index}"] == pytest.approx(total**0.5)
        branch = f(h)
        total += branch.var(correction=0).item()
        h = nn.functional.layer_norm(h + branch, (D,))
    assert stack.initialise(x) == pytest.approx(found)  # starts from 1 again


def test_residual_s_gain_is_of_the_whole_model() -> None:
    blocks = [Residual(nn.Linear(64, 64), 64, "pre", depth=16, layer=i) for i in range(16)]
    assert [block.initialise() for block in blocks] == [{"0.weight": 0.25}] * 16
    assert Stack([nn.Linear(64, 64) for _ in range(16)], 64).initialise() == {f"{i}.weight": 0.25 for i in range(16)}
    with pytest.raises(ValueError, match=r"initialise\(\): pre scales by the number of sublayers: pass depth="):
        Residual(nn.Linear(64, 64), 64, "pre").initialise()


def test_admin_whose_profile_fails_is_left_as_it_was() -> None:
    stack = Stack(mixers(torch.float32), D, placement="admin")
    stack.initialise(torch.randn(4, 3, D))
    before = {k: v.clone() for k, v in stack.state_dict().items()}
    with pytest.raises(ValueError, match="x has shape"):
        stack.initialise(torch.randn(4, 3, D + 1))
    with pytest.raises(TypeError, match="mask"):
        stack.initialise(torch.randn(4, 3, D), mask=None)
    assert all(torch.equal(v, before[k]) for k, v in stack.state_dict().items())


@pytest.mark.parametrize(("count", "fill", "index"), [(0, 1.0, 0), (2, math.nan, 0), (2, 1.0, 1)])
def test_admin_refuses_a_sample_without_a_variance(count: int, fill: float, index: int) -> None:
    stack, sample = Stack(mixers(torch.float32), D, placement="admin"), torch.full((count, 3, D), fill)
    nn.init.constant_(stack.sublayers[1].fc2.bias, math.inf)  # pyright: ignore
    with pytest.raises(ValueError, match=rf"the branch of sublayer {index}, of shape \(.*, 3, 12\), has no finite"):
        stack.initialise(sample)
    assert all(torch.equal(scale, torch.ones(D)) for scale in stack.placement.scales)  # pyright: ignore[reportGeneralTypeIssues]


@pytest.mark.parametrize("name", PLACEMENTS)
def test_a_placement_with_no_rule_says_so(name: str) -> None:
    stack = Stack(mixers(torch.float32), D, placement=name)
    before = {k: v.clone() for k, v in stack.state_dict().items()}
    said = stack.initialise(torch.randn(2, 3, D))
    changed = {k for k, v in stack.state_dict().items() if not torch.equal(v, before[k])}
    assert bool(said) == bool(changed) == (name in ("pre", "deepnorm", "sub_ln", "admin"))


@pytest.mark.parametrize("name", ["pre", "deepnorm", "sub_ln"])
def test_initialise_where_nothing_fits(name: str) -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.strange, self.inner_norm = nn.Linear(D, D), Slot(D)

    class Bare(nn.Module):
        inner_norm = Slot(D)

    with pytest.raises(ValueError, match=r"sublayer 0 \(Odd\) has none with a known name: it has strange.weight"):
        Stack([Odd(), Odd()], D, placement=name).initialise()
    if name != "sub_ln":  # whose slots have parameters
        with pytest.raises(ValueError, match="the sublayers have no parameters"):
            Stack([nn.ReLU(), nn.Tanh()], D, placement=name).initialise()


@pytest.mark.parametrize(
    ("first", "last"), [("wi", "wo"), ("wi_0 wi_1", "wo"), ("w1 w3", "w2"), ("gate_up_proj", "down_proj")]
)
def test_the_names_of_feed_forward_networks(first: str, last: str) -> None:
    """T5's, its gated one's, LLaMA's own and Phi-3's; each half of what is packed has its own Glorot deviation."""
    d, hidden = 96, 200
    made: dict[str, nn.Module] = {n: nn.Linear(d, hidden * (1 + (n == "gate_up_proj"))) for n in first.split()}
    stack = Stack([nn.ModuleDict({**made, last: nn.Linear(hidden, d)}) for _ in range(2)], d, placement="deepnorm")
    beta = 8**-0.25
    assert stack.initialise() == {
        f"{i}.{n}.weight": pytest.approx(beta) for i in range(2) for n in (*first.split(), last)
    }
    for name, weight in stack.sublayers[0].named_parameters():
        if weight.dim() == 2:
            part = weight.chunk(2)[0] if "gate_up" in name else weight
            assert abs(spread(part) / beta - 1) < 5 / (2 * part.numel()) ** 0.5


def test_tables_have_no_role() -> None:
    """T5's relative positions, Swin's, a norm's weight: they are left alone."""
    sublayer = nn.ModuleDict({"v": nn.Linear(D, D), "o": nn.Linear(D, D), "bias": nn.Embedding(7, 2),
                              "norm": nn.LayerNorm(D)})  # fmt: skip
    sublayer.register_parameter("relative_position_bias_table", nn.Parameter(torch.ones(7, 2)))
    assert set(Stack([sublayer] * 2, D).initialise()) == {f"{i}.{n}.weight" for i in range(2) for n in "vo"}


class Packed(nn.Module):
    """GPT-2's attention: queries, keys and values in one matrix, stored (in, out) or (out, in)."""

    def __init__(self, shape: tuple[int, int]) -> None:
        super().__init__()
        self.c_attn, self.c_proj = nn.Module(), nn.Linear(D, D)
        self.c_attn.weight = nn.Parameter(torch.zeros(shape))


@pytest.mark.parametrize("shape", [(3 * D, D), (D, 3 * D)])
def test_packed_matrices_are_parted_either_way(shape: tuple[int, int]) -> None:
    """Values are drawn with DeepNorm's beta, queries and keys with 1."""
    stack = Stack([Packed(shape), FFN(D)], D, placement="deepnorm")
    stack.placement.beta = 1e-3
    stack.initialise()
    q, k, v = stack.sublayers[0].c_attn.weight.chunk(3, dim=shape.index(3 * D))  # pyright: ignore
    assert v.std() < 1e-2 < min(q.std(), k.std())


@pytest.mark.parametrize(
    ("sublayer", "message"),
    [
        (lambda: nn.ModuleDict({"q_proj": nn.Linear(D, D), "out_proj": nn.Linear(D, D)}), "has none of v, v_proj"),
        (lambda: nn.ModuleDict({"fc1": nn.Linear(D, D), "dense": nn.Linear(D, D)}), r"has none of o, .*dense.weight"),
        (lambda: nn.ModuleDict({"inp": nn.Linear(D, D), "wo": nn.Linear(D, D)}), "has inp.weight, whose role is not"),
        (lambda: nn.ModuleDict({n: nn.Linear(D, D) for n in ("w1", "w2", "w4")}), "has w4.weight, whose role is not"),
        (lambda: nn.ModuleDict({"fc1": parametrised(nn.Linear(D, D)), "fc2": nn.Linear(D, D)}), "role is not known"),
        (lambda: nn.Sequential(parametrised(nn.Linear(D, D)), nn.Linear(D, D)), "role is not known"),
        (
            lambda: nn.ModuleDict({"gate_up_proj": nn.Linear(D, D), "down_proj": nn.Linear(2 * D, D)}),
            "of different sizes are packed",
        ),
        (lambda: nn.ModuleDict({"qkv": nn.Linear(D, 2 * D), "proj": nn.Linear(D, D)}), "of different sizes are packed"),
        (  # queries of 2 D, keys and values of D / 2
            lambda: nn.ModuleDict({"qkv": nn.Linear(D, 3 * D), "proj": nn.Linear(2 * D, D)}),
            "of different sizes are packed",
        ),
    ],
)
def test_initialise_misses_a_matrix_and_changes_nothing(sublayer: Callable[[], nn.Module], message: str) -> None:
    """The first sublayer, which fits, is left as it was too."""
    stack = Stack([FFN(D), sublayer()], D)
    before = {k: v.clone() for k, v in stack.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        stack.initialise()
    assert all(torch.equal(v, before[k]) for k, v in stack.state_dict().items())
