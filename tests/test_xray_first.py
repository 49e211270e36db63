"""A stranger's test: from the page alone, which site to look at first. Each fault is put early, and late."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from addnorm.report import inspect as report
from addnorm.xray import Inspection, inspect
from addnorm.xray.base import Urgency

from .support.faulty import WIDTH, Post, Pre

SITES, TOKENS = 6, 8
MASK = torch.ones(3, TOKENS, dtype=torch.long)
MASK[1, 5:] = 0
Plant = Callable[[Any], None]  # into a site


def square(output: Tensor) -> Tensor:
    torch.manual_seed(2)
    return (output * torch.randn(output.shape)).sum()


def x_rayed(model: nn.Module) -> Inspection:
    torch.manual_seed(1)
    return inspect(model, [{"x": torch.randn(3, TOKENS, WIDTH), "attention_mask": MASK}], loss=square)


def idle(site: Any) -> None:
    site.linear.weight *= 1e-3


def off(site: Any) -> None:
    site.linear.weight *= 0


def exploding(site: Any) -> None:
    site.linear.weight *= 100


def dead(site: Any) -> None:
    site.norm.weight[3] = 1e-4


def added(vector: Tensor) -> Plant:
    """A branch that adds the same to every token."""

    def plant(site: Any) -> None:
        branch = site.branch
        site.branch = lambda y: branch(y) + vector

    return plant


def eps_dominates(site: Any) -> None:
    site.norm.eps = 100.0


def collapsing(site: Any) -> None:
    site.branch = lambda y: y.mean(1, keepdim=True) - 0.99 * y


def leaking(site: Any) -> None:
    branch = site.branch
    site.branch = lambda y: branch(y) + branch(y).mean(1, keepdim=True)


def overflowing(site: Any) -> None:
    site.linear.weight *= 1e6


CHANNEL = nn.functional.one_hot(torch.tensor(7), WIDTH)
FAULTS: dict[str, tuple[Plant, str]] = {
    "idle branch": (idle, "residual ratio"),
    "branch of zeros": (off, "residual ratio"),
    "exploding branch": (exploding, "residual ratio"),
    "dead gamma channel": (dead, "dead channels"),
    "massive activation": (added(5000.0 * CHANNEL), "massive activations"),
    "eps dominates": (eps_dominates, "rows ruled by eps"),
    "rank collapse": (collapsing, "rank residual"),
    "padding leakage": (leaking, "padding leakage"),
    "float16 overflow": (overflowing, "largest value"),
    "NaN": (added(torch.nan * CHANNEL), "NaN and infinity"),
}


@pytest.mark.parametrize("at", [1, 4])
@pytest.mark.parametrize("build", [Pre, Post])
@pytest.mark.parametrize("fault", FAULTS)
def test_the_page_names_the_planted_site_first(fault: str, build: type[Pre], at: int) -> None:
    if build is Pre and fault == "rank collapse":
        pytest.skip("a pre-norm branch sees no stream that it could take away")
    model, (plant, title) = build(SITES), FAULTS[fault]
    with torch.no_grad():
        plant(model.sites[at])
    lead = report.document(x_rayed(model)).lead
    assert lead is not None
    assert lead.title == f"Look first at sites.{at}.norm", lead
    assert any(reason.startswith(title) for reason in lead.reasons), lead


def test_the_lost_identity_path_of_post_norm_is_named_before_what_is_beside_it() -> None:
    """It is the model's fault, and no site's: named is where least is left, and how far the loss goes."""
    model = Post(24, scale=2.8)
    with torch.no_grad():
        for site in model.sites:
            assert isinstance(site.linear, nn.Linear)
            nn.init.normal_(site.linear.weight, std=(2 / WIDTH) ** 0.5)
    found = x_rayed(model)
    (share,) = [each for each in found.first if each.measurement == "identity_share"]
    assert share.site == "sites.0.norm"
    assert share.evidence.startswith("below at ")
    assert "going back it falls most at sites." in share.evidence
    lead = report.document(found).lead
    assert lead is not None
    assert lead.title == "Look first at sites.0.norm"


@pytest.mark.parametrize("build", [Pre, Post])
def test_without_a_fault_nothing_is_named(build: type[Pre]) -> None:
    assert x_rayed(build(SITES)).first == ()


def test_gradients_alone_are_named_where_they_come_from() -> None:
    model = Pre(SITES)
    site: Any = model.sites[3]
    site.linear.weight.data.zero_()
    site.branch = lambda y: site.linear(y).square().sqrt()  # 0, and its slope is infinite
    found = x_rayed(model)
    assert {each.site for each in found.findings if each.measurement == "nonfinite"} == {"sites.3.norm"}
    assert {each.site for each in found.first} == {"sites.3.norm"}


def test_findings_come_by_urgency() -> None:
    model = Post(SITES)
    with torch.no_grad():
        dead(model.sites[1])
        exploding(model.sites[3])
        overflowing(model.sites[4])
    urgencies = [each.urgency for each in x_rayed(model).findings]
    assert urgencies == sorted(urgencies, reverse=True)
    assert {Urgency.WRONG, Urgency.UNSTABLE, Urgency.NOTE} <= {*urgencies}
