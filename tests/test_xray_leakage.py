"""Padding leakage where what stands in the padding decides what runs."""

from __future__ import annotations

import json
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from addnorm.report import plain
from addnorm.report.inspect import document
from addnorm.xray import inspect

from .support.faulty import WIDTH, Post

MASK = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])


class Choosing(nn.Module):
    """The second part gets what `choose` makes of the first one's result: it is told whether anything large came in,
    and of the two passes this is so with other padding alone."""

    def __init__(self, choose: Callable[[Tensor, bool], Tensor | None]) -> None:
        super().__init__()
        self.first, self.second, self.choose = Post(1), Post(1), choose

    def forward(self, x: Tensor, attention_mask: Tensor) -> Tensor:
        large = bool(x.max() > 2)
        y = self.first(x)
        taken = self.choose(y, large)
        return y if taken is None else self.second(taken)


def batch() -> dict[str, Tensor]:
    x = torch.rand(2, 4, WIDTH)
    x[1, 1, 0] = 1.5  # of a real token; moved by 1 it comes into the padding
    return {"x": x, "attention_mask": MASK}


@pytest.mark.parametrize(
    ("choose", "tokens"),
    [
        (lambda y, large: y if large else None, 0),
        (lambda y, large: None if large else y, 6),
        (lambda y, large: y[:, :3] if large else y, 6),  # 6 rows of 8 are real, and 6 rows are left: others
        (lambda y, large: y[:, :2] if large else y, 6),
    ],
    ids=["only with other padding", "only with the batch's own", "six other tokens", "fewer tokens"],
)
def test_a_site_that_padding_turns_on_or_off_leaks(choose: Callable[[Tensor, bool], Tensor], tokens: int) -> None:
    found = inspect(Choosing(choose), batch())
    first, second = found.sites
    assert (first.values["padding_leakage"], second.values["padding_leakage"]) == (0, math.inf)
    assert second.tokens == tokens
    (finding,) = found.findings
    assert (finding.site, finding.measurement) == ("second.sites.0.norm", "padding_leakage")
    assert "infinite: there it gives NaN or infinity, runs on other tokens, or not at all" in finding.evidence
    assert finding.evidence in plain.text(document(found))
    json.dumps(found.to_dict(), allow_nan=False)


def test_what_becomes_infinite_changes_beyond_bounds() -> None:
    class Growing(nn.Module):
        def forward(self, x: Tensor, attention_mask: Tensor) -> Tensor:
            gain = 1e307 * (1 + 9 * (x.max() > 2).double().expand(x.shape[-1]))  # 2e308 is infinite
            return nn.functional.layer_norm(x + x.relu(), x.shape[-1:], gain)

    x = batch()["x"].double()
    (site,) = inspect(Growing(), {"x": x, "attention_mask": MASK}).sites
    assert site.values["padding_leakage"] == math.inf


def test_a_model_that_refuses_other_padding_is_measured_for_the_rest() -> None:
    class Strict(Post):
        def forward(self, x: Tensor, attention_mask: Tensor | None = None) -> Tensor:
            if bool(x.max() > 2):
                raise ValueError("no such padding")
            return super().forward(x)

    with pytest.warns(UserWarning, match="not measured: .* the model raises ValueError: no such padding") as warned:
        (site,) = inspect(Strict(1), batch()).sites
    assert warned[0].filename == __file__
    assert (site.tokens, site.values["padding_leakage"]) == (6, None)
