"""The comparison of the placements: the toy task's ordering over seeds, the counts, the command."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from addnorm import cli
from addnorm.comparison import Comparison, compare
from addnorm.comparison.toy import CHANCE, final_loss
from addnorm.comparison.traffic import traffic
from addnorm.placements import PLACEMENTS
from addnorm.report import page
from addnorm.report.placements import document

Capture = pytest.CaptureFixture[str]


@pytest.mark.parametrize("seed", range(3))
def test_depth_decides_by_placement(seed: int) -> None:
    """18 layers, Adam 1e-3, no warm-up: post-norm stays at chance where pre-norm and DeepNorm learn to copy."""
    losses = {name: final_loss(name, layers=18, seed=seed, steps=60) for name in ("post", "pre", "deepnorm")}
    assert losses["post"] > 0.95 * CHANCE, losses
    assert losses["pre"] < 0.25 * CHANCE, losses
    assert losses["deepnorm"] < 0.25 * CHANCE, losses


def test_shallow_post_norm_learns() -> None:
    """...so that depth, not the task, is what stops it above."""
    assert final_loss("post", layers=3, seed=0, steps=100) < 0.25 * CHANCE


# Counted by hand: a fused sum and norm reads two tensors and writes one, or two where it keeps the stream.
TRAFFIC = {
    "post": lambda n: (2, 1),
    "deepnorm": lambda n: (2, 1),
    "pre": lambda n: (2 + 1 / n, 2),  # the first norm reads and writes one more, the last sum writes one less
    "sandwich": lambda n: (3 + 1 / n, 3),
    "rezero": lambda n: (4 - 1, 2),  # scale: 1 and 1; sum: 2 and 1
    "residual_dual": lambda n: (4 + 3 / n, 2 + 2 / n),  # at the end a norm and a sum
    "b2t": lambda n: (3, 1.5),
    "parallel": lambda n: (2 + 1 / n, 1.5),
}


@pytest.mark.parametrize("name", TRAFFIC)
def test_reads_and_writes(name: str) -> None:
    sublayers = 8
    assert traffic(name, sublayers // 2, 16) == pytest.approx(TRAFFIC[name](sublayers))


@pytest.fixture(scope="module")
def found() -> Comparison:
    return compare(layers=4, seeds=1, steps=2)


def test_every_placement_is_there(found: Comparison) -> None:
    assert [row.name for row in found.rows] == list(PLACEMENTS)
    for row in found.rows:
        assert len(row.gradients) == 4
        assert all(gradient >= 0 for gradient in row.gradients)
        assert row.loss == row.losses[0] > 0
    parameters = {row.name: row.parameters for row in found.rows}
    d = found.width
    assert parameters["post"] == 2 * d * 8
    assert parameters["pre"] == 2 * d * 9
    assert parameters["rezero"] == 8
    assert parameters["sub_ln"] == 2 * d * 9 + 4 * (2 * d + 2 * 4 * d)
    rezero = next(row for row in found.rows if row.name == "rezero")
    assert rezero.spread is None
    assert set(rezero.gradients) == {0.0}  # nothing reaches a branch that counts for nothing


def test_document_and_page(found: Comparison) -> None:
    made = document(found)
    assert len(made.sections) == 4
    html = page.render(made)
    assert all(name in html for name in PLACEMENTS)
    untrained = document(compare(["pre"], layers=2, seeds=0))
    assert "not trained" in untrained.summary[0]


def test_command(tmp_path: Path, capsys: Capture) -> None:
    html = tmp_path / "page.html"
    asked = ["placements", "pre", "post", "--layers", "2", "--seeds", "1", "--steps", "2"]
    assert cli.main([*asked, "--json", "--html", str(html)]) == 0
    result = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in result["rows"]] == ["pre", "post"]
    assert result["rows"][0]["loss"] > 0
    assert "addnorm placements" in html.read_text()
    assert cli.main(asked) == 0
    assert "h <- h + drop(f(N(h)))" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("asked", "complaint"),
    [(["middle"], "no placement middle; there are: post, pre"), (["--layers", "0"], "must be at least 1")],
)
def test_command_refuses(asked: list[str], complaint: str, capsys: Capture) -> None:
    assert cli.main(["placements", *asked, "--json"]) == 2
    assert complaint in capsys.readouterr().err
