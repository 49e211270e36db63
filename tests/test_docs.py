"""The tables of the documents are those of the results they name."""

import json
from pathlib import Path

import pytest

from addnorm.cli import main
from benchmarks.fuse import markdown

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"


def rows(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("|")]


def test_speed_of_the_operation(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--load", str(RESULTS / "cpu.json"), "--markdown"]) == 0
    expected = rows(capsys.readouterr().out)
    _, table = (ROOT / "docs" / "cpu.md").read_text().split("<!-- from: addnorm bench")
    assert rows(table) == expected
    _, table = (ROOT / "README.md").read_text().split("<!-- from: addnorm bench")
    assert len(rows(table)) > 8
    assert rows(table) == expected[: len(rows(table))]


@pytest.mark.parametrize("name", ["fuse.json", "fuse-2-threads.json"])
def test_speed_of_fused_models(name: str) -> None:
    expected = markdown(json.loads((RESULTS / name).read_text()))
    assert rows(expected)
    document = (ROOT / "docs" / "fuse.md").read_text()
    for paragraph in expected.split("\n\n"):
        assert paragraph.strip() in document
