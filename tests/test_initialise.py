"""What `Stack.initialise` draws, held to each placement's paper, and what it refuses to change."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from addnorm import Slot, Stack
from addnorm.placements import PLACEMENTS

from .support.naive import Mixer

D, HIDDEN, LAYERS = 12, 20, 5


def mixers(dtype: torch.dtype) -> list[Mixer]:
    return [Mixer(D, HIDDEN).to(dtype) for _ in range(2 * LAYERS)]


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
        (lambda: nn.ModuleDict({"qkv": nn.Linear(D, 2 * D), "proj": nn.Linear(D, D)}), "of different sizes are packed"),
    ],
)
def test_initialise_misses_a_matrix_and_changes_nothing(sublayer: Callable[[], nn.Module], message: str) -> None:
    """The first sublayer, which fits, is left as it was too."""
    stack = Stack([FFN(D), sublayer()], D)
    before = {k: v.clone() for k, v in stack.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        stack.initialise()
    assert all(torch.equal(v, before[k]) for k, v in stack.state_dict().items())
