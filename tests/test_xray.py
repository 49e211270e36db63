"""Each measurement against its formula by hand in float64; which tokens count; and that nothing is disturbed."""

from __future__ import annotations

import copy
import gc
import json
import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import addnorm
from addnorm.xray import Inspection, inspect, run
from addnorm.xray.base import Rule, Urgency
from addnorm.xray.measurements import MEASUREMENTS

from .support.faulty import WIDTH, Leaking, Post, Pre
from .support.kernels import needs_kernels

MASK = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [1, 0, 0, 0, 0]])


def inputs(seed: int = 1) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    return {"x": torch.randn(3, 5, WIDTH, dtype=torch.float64), "attention_mask": MASK}


def loss(output: Tensor) -> Tensor:
    return (output[MASK.bool()] ** 3).sum()


@pytest.fixture(scope="module")
def model() -> Pre:
    made = Pre(4).double()
    with torch.no_grad():
        for i, site in enumerate(made.sites):
            nn.init.normal_(site.norm.weight, 1.0, 0.3)
            nn.init.normal_(site.norm.bias, 0.0, 0.1)
            site.norm.weight[i] = 1e-5
            site.norm.eps = 1e-5 if i else 0.09
    return made


@pytest.fixture(scope="module")
def found(model: Pre) -> Inspection:
    return inspect(model, [inputs(1), inputs(2)], loss=loss)


def by_hand(model: Pre, site: int) -> dict[str, Any]:
    """The tensors of one site over both batches, real tokens only."""
    kept: dict[str, list[Tensor]] = {"f": [], "x": [], "z": [], "y": []}
    apart = []
    for batch in (inputs(1), inputs(2)):
        z = y = batch["x"]
        for each in model.sites[: site + 1]:
            x, f = z, each.branch(y)
            z = x + f
            y = each.norm(z)
        for name, value in {"f": f, "x": x, "z": z, "y": y}.items():
            kept[name].append(value[MASK.bool()].detach())
        for sequence, length in enumerate((5, 3)):
            tokens = z[sequence, :length].detach()
            apart.append((tokens - tokens.mean(0)).norm() / tokens.norm())
    return {**{name: torch.cat(values) for name, values in kept.items()}, "apart": torch.stack(apart)}


FORMULAS = {
    "nonfinite": lambda t, s: 0,
    "magnitude": lambda t, s: torch.stack([t["f"].abs().max(), t["x"].abs().max(), t["z"].abs().max()]).max(),
    "residual_ratio": lambda t, s: (t["f"].norm(dim=-1) / t["x"].norm(dim=-1)).mean(),
    "alignment": lambda t, s: torch.cosine_similarity(t["f"], t["x"], dim=-1).mean(),
    "branch_dependency": lambda t, s: t["f"].var(-1, correction=0).sum() / t["z"].var(-1, correction=0).sum(),
    "block_influence": lambda t, s: 1 - torch.cosine_similarity(t["x"], t["z"], dim=-1).mean(),
    "norm_growth": lambda t, s: t["z"].norm(dim=-1).mean(),
    "rank_collapse": lambda t, s: t["apart"].mean(),
    "sigma": lambda t, s: (t["z"].var(-1, correction=0) < 10 * s.norm.eps).double().mean(),
    "conditioning": lambda t, s: (
        2**-53 * (1 + t["z"].mean(-1) ** 2 / (t["z"].var(-1, correction=0) + s.norm.eps)).sqrt().max()
    ),
    "massive_activations": lambda t, s: 0,
    "outlier_channels": lambda t, s: 0,
    "dead_channels": lambda t, s: (s.norm.weight.abs() < 0.01 * s.norm.weight.abs().median()).sum(),
    "gamma_outliers": lambda t, s: sum(
        bool((abs(w - w.mean()) > 3 * w.std(correction=0))[i] or (abs(b - b.mean()) > 3 * b.std(correction=0))[i])
        for w, b in [(s.norm.weight, s.norm.bias)]
        for i in range(WIDTH)
    ),
}


@pytest.mark.parametrize("name", FORMULAS)
def test_a_measurement_is_its_formula(name: str, model: Pre, found: Inspection) -> None:
    for index, site in enumerate(found.sites):
        expected = float(FORMULAS[name](by_hand(model, index), model.sites[index]))
        assert site.values[name] == pytest.approx(expected, rel=1e-9, abs=1e-12), site.site


def stream_gradients(model: Pre, *, detached: bool) -> list[float]:
    """|dL/dz| of each site over both batches, by hand."""
    squares = [0.0] * 4
    for batch in (inputs(1), inputs(2)):
        z = y = batch["x"]
        streams = []
        for each in model.sites:
            f = each.branch(y)
            z = z + (f.detach() if detached else f)
            z = z if z.requires_grad else z.requires_grad_()
            y = each.norm(z)
            streams.append(z)
        for i, g in enumerate(torch.autograd.grad(loss(y), streams)):
            squares[i] += g[MASK.bool()].square().sum().item()
    return [math.sqrt(each) for each in squares]


def test_gradients_are_those_of_the_stream(model: Pre, found: Inspection) -> None:
    full, identity = (stream_gradients(model, detached=detached) for detached in (False, True))
    assert [site.values["gradient_profile"] for site in found.sites] == pytest.approx(full, rel=1e-9)
    assert found.overall["gradient_profile"] == pytest.approx(max(full) / min(full), rel=1e-9)
    shares = [site.values["identity_share"] for site in found.sites]
    assert shares == pytest.approx([a / b for a, b in zip(identity, full, strict=True)], rel=1e-9)


def test_a_part_without_gradients_has_none() -> None:
    class Half(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fixed, self.trained = Post(1), Post(1)

        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                x = self.fixed(x)
            return self.trained(x)

    fixed, trained = inspect(Half(), torch.randn(2, 5, WIDTH), loss=lambda output: (output**3).sum()).sites
    for name in ("gradient_profile", "identity_share"):
        assert fixed.values[name] is None
        assert trained.values[name]


def test_the_slope_is_a_least_squares_fit(found: Inspection) -> None:
    logs = [[math.log(i), math.log(site.values["norm_growth"] or 0)] for i, site in enumerate(found.sites, 1)]
    x, y = torch.tensor(logs, dtype=torch.float64).T
    fit = torch.linalg.lstsq(torch.stack([x, torch.ones_like(x)], 1), y[:, None]).solution[0].item()
    assert found.overall["norm_growth"] == pytest.approx(fit, rel=1e-9)


def test_padding_changes_no_number(model: Pre, found: Inspection) -> None:
    batches = [inputs(1), inputs(2)]
    for batch in batches:
        batch["x"][~MASK.bool()] = 1e4
    other = inspect(model, batches, loss=loss)
    assert [site.values for site in other.sites] == [site.values for site in found.sites]
    assert {(site.tokens, site.padding) for site in other.sites} == {(18, 12)}


def test_without_a_mask_every_token_counts(model: Pre) -> None:
    (site, *_) = inspect(model, [inputs()["x"]]).sites
    assert (site.tokens, site.padding) == (15, 0)
    assert site.values["padding_leakage"] is None
    assert site.values["gradient_profile"] is None


def test_the_model_is_left_as_it_was() -> None:
    model = Post(2).double().train()
    model.sites[0].eval()
    state = copy.deepcopy(model.state_dict())
    model.sites[0].linear.weight.grad = torch.ones(WIDTH, WIDTH, dtype=torch.float64)
    inspect(model, [inputs()], loss=loss)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert [module.training for module in (model, *model.sites)] == [True, False, True]
    assert model.sites[0].linear.weight.grad.sum() == WIDTH * WIDTH
    assert model.sites[1].linear.weight.grad is None


@needs_kernels
def test_a_fused_model_gives_the_same_and_stays_fused(model: Pre, found: Inspection) -> None:
    twin = copy.deepcopy(model)
    with addnorm.fuse(twin) as handle:
        twin(**inputs())
        again = addnorm.inspect(twin, [inputs(1), inputs(2)], loss=loss)
        assert handle.report.fused == 4
        assert twin._compiled_call_impl is not None
    assert [site.values for site in again.sites] == [site.values for site in found.sites]


def test_a_result_prints_and_is_json(found: Inspection) -> None:
    data = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert {*data["measurements"]} == {*MEASUREMENTS} == {*data["sites"][0]["values"]}
    assert data["overhead"]["factor"] > 0
    assert data["findings"][0]["action"]
    assert data["findings"][0]["urgency"] in {str(each) for each in Urgency}
    assert data["measurements"]["sigma"]["rules"][0]["urgency"] == "wrong"
    assert "4 Add & Norm sites, 18 tokens in 2 batches, forward and backward" in str(found)
    assert all(str(finding) in str(found) for finding in found.findings)


@pytest.mark.parametrize(
    ("limit", "above", "value", "severity", "broken"),
    [
        (2.0, True, 1.0, 0.5, False),
        (2.0, True, 4.0, 2.0, True),
        (0.1, False, 0.2, 0.5, False),
        (0.1, False, 0.0, math.inf, True),
        (0.0, True, 0.0, 0.0, False),
        (0.0, True, 1.0, math.inf, True),
        (-0.5, False, -1.0, 2.0, True),
        (-0.5, False, 0.5, 0.0, False),
        (2.0, True, math.nan, None, False),
    ],
)
def test_a_rule_says_how_near(limit: float, above: bool, value: float, severity: float | None, broken: bool) -> None:
    rule = Rule(limit, above, True, Urgency.NOTE, "", "")
    assert rule.severity(value) == severity
    assert rule.broken(value) == broken


def test_the_plain_pass_by_the_clock_pays_for_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither for a process's first backward nor for the garbage of the capture."""
    events: list[str] = []
    timed = run.Run.timed

    def told(self: run.Run, name: str) -> Any:
        events.append(name)
        return timed(self, name)

    def heard(output: Tensor) -> Tensor:
        output.register_hook(lambda _: events.append("backward"))
        return output.sum()

    monkeypatch.setattr(run.Run, "timed", told)
    switches = {name: lambda name=name: events.append(name) for name in ("enable", "disable")}
    monkeypatch.setattr(run, "gc", SimpleNamespace(isenabled=lambda: True, **switches))
    inspect(Pre(1), [torch.zeros(1, 2, WIDTH)], loss=heard)
    inspected = ["inspected", "disable", "backward", "backward", "enable"]
    plain = ["plain", "disable", "backward", "enable"]
    assert events == ["capture", "disable", "enable", "backward", *plain, *inspected]


def test_each_token_is_told_of() -> None:
    """A measurement's tokens: as many as there are real ones, their worst by name, in memory that does not grow."""
    model = Pre(2).double()
    batch = inputs()
    found = inspect(model, [batch, inputs(2)], loss=loss)
    f = model.sites[0].branch(batch["x"]).detach()
    ratio = (f.norm(dim=-1) / batch["x"].norm(dim=-1)).masked_fill(~MASK.bool(), -1)
    once = inspect(model, [batch], loss=loss).sites[0].details["residual_ratio"]["worst"][0]
    assert once["value"] == pytest.approx(ratio.max().item(), rel=1e-12)
    assert [once["sequence"], once["position"]] == [int(i) for i in torch.unravel_index(ratio.argmax(), ratio.shape)]
    by_token = {
        "magnitude", "padding_leakage", "residual_ratio", "alignment", "branch_dependency", "block_influence",
        "norm_growth", "rank_collapse", "sigma", "conditioning", "identity_share", "gradient_profile",
    }  # fmt: skip
    tokens = {"padding_leakage": 9, "rank_collapse": 16}  # one batch is padded anew; a sequence of one has no rank
    for site in found.sites:
        for name in by_token:
            told = site.details[name]
            assert sum(count for _, count in told["tokens"]["bins"]) == tokens.get(name, 18), name
            assert len(told["worst"]) == 8
            assert told["tokens"]["min"] <= told["tokens"]["p50"] <= told["tokens"]["max"]


def test_counts_are_those_by_hand() -> None:
    """Where they are not 0: NaN, massive activations, outlier channels."""
    model = Pre(2).double()
    x = inputs()["x"]
    x[0, 1, 3], x[1, 2, 7], x[0, 0, 2] = torch.nan, 5000.0, -4000.0
    with torch.no_grad():
        for site in model.sites:
            assert isinstance(site.norm, nn.LayerNorm)
            site.norm.weight[5] = 30.0
    z = y = x
    for site, measured in zip(model.sites, inspect(model, [{"x": x, "attention_mask": MASK}]).sites, strict=True):
        z = z + site.branch(y)
        y = site.norm(z)
        rows, out = z[MASK.bool()].detach(), y[MASK.bool()].detach()
        assert measured.values["nonfinite"] == (~rows.isfinite()).sum() + (~out.isfinite()).sum() > 0
        sound = rows.isfinite().all(-1)
        size = rows[sound].abs()
        massive = ((size > 100) & (size >= 1000 * size.median())).sum()
        assert measured.values["massive_activations"] == massive > 0
        outliers = ((out[sound].abs() >= 6).double().mean(0) >= 0.06).sum()
        assert measured.values["outlier_channels"] == outliers > 0


def test_leakage_is_the_largest_change_by_hand() -> None:
    """The padding becomes entries of real tokens, the last first, moved by 1."""
    model, batch = Leaking(2).double(), inputs()
    real = MASK.bool()
    changed = batch["x"].clone()
    changed[~real] = batch["x"][real].flip(0)[: int((~real).sum())] + 1
    found, (z, y, other, after) = inspect(model, [batch]).sites, (batch["x"], batch["x"], changed, changed)
    for site, measured in zip(model.sites, found, strict=True):
        z, other = z + model.mix(site.branch(y), None), other + model.mix(site.branch(after), None)
        y, after = site.norm(z), site.norm(other)
        expected = (y - after)[real].abs().max().item()
        assert measured.values["padding_leakage"] == pytest.approx(expected, rel=1e-12)


def test_memory_does_not_grow_with_the_batches() -> None:
    """The bytes of all tensors that are alive between two batches, and what is told in the end."""
    held = []

    def batches(count: int) -> Any:
        for seed in range(count):
            gc.collect()
            alive = (each for each in gc.get_objects() if type(each) is Tensor and each.layout == torch.strided)
            held.append(sum(each.nbytes for each in alive))
            yield inputs(seed)

    model = Pre(2).double()
    gc.collect()
    gc.freeze()  # what other tests left is neither searched nor counted
    try:
        short = len(str(inspect(model, batches(3), loss=loss).to_dict()))
        held.clear()
        long = len(str(inspect(model, batches(20), loss=loss).to_dict()))
    finally:
        gc.unfreeze()
    assert held[2] > 0
    assert set(held[2:]) == {held[2]}
    assert long < 2 * short  # more bins have a count; the worst are as many
