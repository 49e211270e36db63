"""Each planted fault is found where it is, and a healthy model raises no warning."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from addnorm.xray import Inspection, inspect

from .support.faulty import WIDTH, Leaking, Masked, Post, Pre

SITES = 4
Plant = Callable[[Any], None]


def data(batch: int = 3, tokens: int = 6) -> Tensor:
    torch.manual_seed(1)
    return torch.randn(batch, tokens, WIDTH)


def square(output: Tensor) -> Tensor:
    """A loss whose gradient is neither 0 nor the same for all."""
    torch.manual_seed(2)
    return (output * torch.randn(output.shape)).sum()


def seen(found: Inspection) -> set[tuple[str, str]]:
    return {(each.site, each.measurement) for each in found.findings}


@pytest.mark.parametrize("model", [Pre(SITES), Post(SITES), Masked(SITES)], ids=["pre", "post", "masked"])
def test_a_healthy_model_raises_no_warning(model: nn.Module) -> None:
    mask = torch.ones(3, 6, dtype=torch.long)
    mask[1, 4:] = 0
    found = inspect(model, [{"x": data(), "attention_mask": mask}], loss=square)
    assert found.findings == ()
    assert found.sites[0].values["padding_leakage"] == 0
    assert all(site.values["identity_share"] is not None for site in found.sites)


@torch.no_grad()
def idle(model: Pre) -> None:
    model.sites[1].linear.weight *= 0.001


@torch.no_grad()
def exploding(model: Pre) -> None:
    model.sites[2].linear.weight *= 100


@torch.no_grad()
def dead(model: Pre) -> None:
    model.sites[1].norm.weight[3] = 1e-4


@torch.no_grad()
def erasing(model: Pre) -> None:
    model.sites[1].branch = lambda y: -0.9 * y  # of a model whose stream is y


@torch.no_grad()
def overflowing(model: Pre) -> None:
    model.sites[3].linear.weight *= 1e6


@torch.no_grad()
def large_eps(model: Pre) -> None:
    model.sites[1].norm.eps = 10.0


@torch.no_grad()
def outlier(model: Pre) -> None:
    for site in model.sites:
        site.norm.weight[5] = 20.0


@pytest.mark.parametrize(
    ("build", "plant", "site", "measurement"),
    [
        (Pre, idle, 1, "residual_ratio"),
        (Pre, idle, 1, "block_influence"),
        (Pre, exploding, 2, "residual_ratio"),
        (Post, exploding, 2, "branch_dependency"),
        (Pre, dead, 1, "dead_channels"),
        (Post, erasing, 1, "alignment"),
        (Pre, overflowing, 3, "magnitude"),
        (Pre, large_eps, 1, "sigma"),
        (Pre, outlier, None, "gamma_outliers"),
        (Pre, outlier, None, "outlier_channels"),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_a_planted_fault_is_found(build: type[Pre], plant: Plant, site: int | None, measurement: str) -> None:
    model = build(SITES)
    plant(model)
    found = inspect(model, [data()])
    where = "" if site is None else f"sites.{site}.norm"
    named = {each.measurement: each for each in found.findings if each.site == where}
    assert measurement in named, str(found)
    assert named[measurement].action
    if site is not None:  # and not elsewhere before it
        assert not {(f"sites.{i}.norm", measurement) for i in range(site)} & seen(found)


def test_a_dead_channel_is_named() -> None:
    model = Pre(SITES)
    dead(model)
    (finding,) = inspect(model, [data()]).findings
    assert finding.evidence.startswith("channels 3, |beta|")


def test_a_massive_activation_is_found_with_token_and_channel() -> None:
    x = data()
    x[2, 4, 7] = 5000.0
    found = inspect(Pre(SITES), [data(), x])
    finding = next(each for each in found.findings if each.measurement == "massive_activations")
    assert finding.site == "sites.0.norm"
    assert "batch 1, sequence 2, token 4, channel 7" in finding.evidence


def test_rank_collapse_is_found() -> None:
    x = data()
    x = x.mean(1, keepdim=True) + 0.01 * x
    assert ("sites.3.norm", "rank_collapse") in seen(inspect(Pre(SITES), [x]))


def test_a_constant_shift_is_badly_conditioned() -> None:
    model = Pre(SITES)
    model.sites[0].linear.weight.data *= 1e-7  # the branch would bring a spread
    assert ("sites.0.norm", "conditioning") in seen(inspect(model, [data() + 1e6]))


def test_padding_leakage_is_found() -> None:
    mask = torch.ones(3, 6, dtype=torch.long)
    mask[1, 4:] = 0
    found = inspect(Leaking(SITES), [{"x": data(), "attention_mask": mask}])
    assert ("sites.0.norm", "padding_leakage") in seen(found)


def test_the_lost_identity_path_of_post_norm_is_found_and_pre_norm_keeps_it() -> None:
    share = {}
    for build in (Post, Pre):
        model = build(24, scale=2.8)
        with torch.no_grad():
            for site in model.sites:
                nn.init.normal_(site.linear.weight, std=(2 / WIDTH) ** 0.5)
        found = inspect(model, [data()], loss=square)
        share[build] = found.sites[0].values["identity_share"]
        assert ("sites.0.norm" in {e.site for e in found.findings if e.measurement == "identity_share"}) == (
            build is Post
        )
    assert share[Post] < 1e-3 < share[Pre]


def test_vanishing_gradients_are_found() -> None:
    model = Post(SITES)
    for site in model.sites:
        site.norm.eps = 1e4  # s = 100: neither the skip nor the branch gets its gradient back
    assert ("", "gradient_profile") in seen(inspect(model, [data()], loss=square))


def test_growth_is_found() -> None:
    model = Pre(SITES)
    with torch.no_grad():
        for i, site in enumerate(model.sites):
            site.linear.weight *= 8.0**i
    assert ("", "norm_growth") in seen(inspect(model, [data()]))


def test_nan_in_the_data_is_a_finding_and_the_rest_is_measured() -> None:
    x = data()
    clean = inspect(Pre(SITES), [x[:, 1:]])
    x[:, 0, 0] = torch.nan
    found = inspect(Pre(SITES), [x])
    assert ("sites.0.norm", "nonfinite") in seen(found)
    for site, same in zip(found.sites, clean.sites, strict=True):
        assert site.tokens == same.tokens
        assert site.values["residual_ratio"] == pytest.approx(same.values["residual_ratio"], rel=1e-6)


def test_float16_overflow_inside_the_model_is_found() -> None:
    model = copy.deepcopy(Pre(SITES)).half()
    with torch.no_grad():
        model.sites[2].linear.weight *= 3000
    model.sites[2].scale = 1000.0
    assert ("sites.2.norm", "nonfinite") in seen(inspect(model, [data().half()]))


ALONE = [  # each fault, and all that is found: what it is, and what follows from it
    (idle, 1, {"residual_ratio", "block_influence"}, set()),
    (exploding, 2, {"residual_ratio"}, {("", "norm_growth")}),  # the next branch, small beside it, is as it was
    (dead, 1, {"dead_channels"}, set()),
    (large_eps, 1, {"sigma"}, set()),
    # The last sum is all branch: its norm takes out what came along the skip, and the gradient with it.
    (overflowing, 3, {"magnitude", "residual_ratio"},
     {("", "norm_growth"), ("", "gradient_profile"), ("sites.0.norm", "identity_share")}),
]  # fmt: skip


@pytest.mark.parametrize(("plant", "site", "measurements", "follows"), ALONE, ids=lambda v: getattr(v, "__name__", ""))
def test_only_the_planted_fault_is_found_and_looked_at_first(
    plant: Plant, site: int, measurements: set[str], follows: set[tuple[str, str]]
) -> None:
    model = Pre(SITES)
    plant(model)
    found = inspect(model, [data()], loss=square)
    assert seen(found) == {(f"sites.{site}.norm", name) for name in measurements} | follows
    assert {each.site for each in found.first} == {f"sites.{site}.norm"}


def test_what_is_carried_on_is_looked_at_where_it_begins() -> None:
    x = data()
    x[2, 4, 7] = 5000.0
    massive = inspect(Pre(SITES), [x], loss=square)
    assert seen(massive) == {(f"sites.{i}.norm", "massive_activations") for i in range(SITES)}
    x[2, 4, 7] = torch.nan
    broken = inspect(Pre(SITES), [x])
    assert seen(broken) == {(f"sites.{i}.norm", "nonfinite") for i in range(SITES)}
    assert {each.site for each in massive.first + broken.first} == {"sites.0.norm"}
    assert "sequence 2, token 4" in broken.first[0].evidence
