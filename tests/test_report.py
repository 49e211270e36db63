from __future__ import annotations

import io
import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from rich.console import Console

from addnorm.bench.cases import BACKWARD, Case
from addnorm.bench.results import Measurement, Results
from addnorm.demo.result import Agreement, DemoResult, Machine, Model, Query, Workload
from addnorm.machine import describe
from addnorm.report import bench, demo, page, terminal
from addnorm.report.document import Document, Figure, Section, Table

HOSTILE = '</script><script>alert("1")</script><img src=x onerror=alert(1)> [bold]&amp;| "quoted"'


def results() -> Results:
    seconds = {"addnorm": 10e-6, "eager": 40e-6, "compile": 55e-6, "onnxruntime": 80e-6, "floor": 8e-6}
    bf16 = {name: seconds[name] / 2 for name in ("addnorm", "eager", "floor")}
    cases = (Case(rows=32, d=768), Case(rows=32, d=768, dtype="bf16"), Case(rows=32, d=768, stream=True))
    return Results(
        describe(),
        (
            Measurement(cases[0], "cpu", seconds, {}, "regular"),
            Measurement(cases[1], "cpu", bf16, {"compile": "failed: no compiler", "onnxruntime": "fp32 only"}),
            Measurement(cases[2], "cpu", seconds, {"eager": "y is off by 1, where rounding explains 1e-6"}),
        ),
        12.0,
    )


def demo_result(name: str = "one sentence") -> DemoResult:
    sites = [
        {"norm": "a.norm", "call": 0, "kind": "layer", "fused": True, "folded": ["dropout", "add"], "stream": False,
         "plain": False, "reason": "", "backend": "cpu"},
        {"norm": "b.norm", "call": 0, "kind": "layer", "fused": False, "folded": [], "stream": False,
         "plain": False, "reason": HOSTILE, "backend": ""},
    ]  # fmt: skip
    return DemoResult(
        Machine("cpu", 2, "2.13", "5.23", "3.11", "Linux", "0.1", "cpu"),
        Model("MiniLM", 6, 384, 22_700_000, "a book", 100),
        {"fused": 1, "skipped": 1, "sites": sites, "breaks": []},
        Agreement(100, 1e-7, 2e-7, 2e-7, 0.9999999, 1e-7, 1e-7, 1e-6, 1e-6),
        (Query(HOSTILE, "yes", "yes", 0.5, 0.5), Query("who?", "one", "two", 0.5, 0.6)),
        (Workload(name, 1, 8, False, 0.0, 10e-3, 9.9e-3, 9e-3, 1e-3, 0.25e-3),),
        30.0,
    )


def shown(document: Document, width: int = 80) -> str:
    console = Console(file=io.StringIO(), width=width, color_system=None)
    terminal.show(document, console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


class Loads(HTMLParser):
    """What a page would load, and the elements it has."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.loads: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        loading = [value or "" for name, value in attrs if name in ("src", "href", "srcset", "data", "action")]
        self.loads += [value for value in loading if not value.startswith("#")]  # a place in the page itself
        assert not any(name.startswith("on") for name, _ in attrs)


@pytest.mark.parametrize("document", [bench.document(results()), demo.document(demo_result())], ids=["bench", "demo"])
def test_a_page_holds_all_that_it_needs(document: Document) -> None:
    html = page.render(document)
    parsed = Loads(html)
    assert parsed.loads == []
    assert "link" not in parsed.tags
    assert html.count("plotly.js v") == 1
    assert not re.search(r"@import|url\(", html[: html.index("</style>")])
    drawn = re.findall(r'<script type="application/json">(.*?)</script>', html, re.DOTALL)
    assert len(drawn) == sum(len(section.figures) for section in document.sections)
    assert all(json.loads(each)["data"] for each in drawn)


def hostile_document() -> Document:
    table = Table((HOSTILE,), ((HOSTILE,),), notes=(HOSTILE,))
    figure = Figure(HOSTILE, (HOSTILE,), {HOSTILE: (1.0,)}, HOSTILE)
    section = Section(HOSTILE, (HOSTILE,), (table,), (figure,))
    return Document(HOSTILE, (HOSTILE,), (section,), {HOSTILE: HOSTILE})


def test_hostile_names_stay_text_on_a_page() -> None:
    html = page.render(hostile_document())
    parsed = Loads(html)
    assert "img" not in parsed.tags
    assert "alert(" not in "".join(re.findall(r"<script>(.*?)</script>", html.replace(page.get_plotlyjs(), "")))
    (drawn,) = re.findall(r'<script type="application/json">(.*?)</script>', html, re.DOTALL)
    assert json.loads(drawn)["data"][0]["name"] == HOSTILE


def test_hostile_names_stay_text_on_the_terminal() -> None:
    assert shown(hostile_document(), width=200).count("[bold]&amp;") == 9


def test_a_page_without_figures_carries_no_drawing_code() -> None:
    html = page.render(Document("title", ("found",), (Section("empty"),)))
    assert len(html) < 10_000
    assert "script" not in Loads(html).tags


def test_the_terminal_fits_eighty_columns() -> None:
    for document in (bench.document(results()), demo.document(demo_result())):
        text = shown(document)
        assert max(map(len, text.splitlines())) <= 80
        assert "…" not in text


def test_a_terminal_without_a_width_has_eighty_columns(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "0")
    terminal.show(bench.document(results()))
    assert 40 < max(map(len, capsys.readouterr().out.splitlines())) <= 80


def test_bench_says_the_ratios_and_who_is_missing() -> None:
    text = shown(bench.document(results()), width=200)
    assert re.search(r"32x768 +fp32 +10 µs +29\.5 +4x +5\.5x +8x +1\.25x", text)
    assert re.search(r"32x768 +bf16 +5 µs +29\.5 +4x +– +– +1\.25x", text)
    assert "ONNX Runtime: fp32 only (32x768 bf16)" in text
    assert "Outputs disagree, no ratio: torch eager, forward, with the sum, 32x768 fp32: y is off by 1" in text


def test_bench_says_first_of_all_where_addnorm_failed() -> None:
    first, *_ = results().measurements
    failed = replace(first, seconds={"floor": 8e-6}, reasons={"addnorm": "failed: no memory"})
    summary = bench.document(replace(results(), measurements=(failed,))).summary
    assert summary[0] == f"No time: addnorm, {failed.case}: failed: no memory"


def test_markdown_has_all_groups_at_a_look_and_each_by_itself() -> None:
    text = bench.markdown(results())
    assert "| shape | forward |" in text
    assert "| 32x768 | 4x / 4x |" in text
    assert "| 32x768 | 10 µs / 5 µs | 4x / 4x | 5.5x / – | 8x / – | 1.25x / 1.25x |" in text
    assert "with the sum" not in text
    assert describe().cpu in text


def test_markdown_says_which_dtypes_are_in_its_cells() -> None:
    found = results()
    alone = replace(found.measurements[0], case=Case(rows=32, d=768, mode=BACKWARD))
    other = replace(found.measurements[2], case=Case(rows=32, d=768, dtype="fp16", stream=True))
    assert "\nfp32 / bf16 in each cell. " in bench.markdown(replace(found, measurements=(*found.measurements, other)))
    text = bench.markdown(replace(found, measurements=(*found.measurements, alone)))
    assert "\nfp32 / bf16 in each cell, in backward fp32. " in text
    assert "| 32x768 | 4x / 4x | 4x |" in text


def test_demo_says_what_was_gained_and_what_limits_it() -> None:
    document = demo.document(demo_result())
    text = shown(document, width=300)
    assert "one sentence: Add & Norm alone 4x, the whole 1.11x. It was 10 % of the time" in text
    assert "1 of 2 questions find the same sentence" in text
    assert "before: one after: two" in text
    assert "is as close to float64 as the original" in text


def test_colours_stay_with_their_series() -> None:
    series = {"absent": (None,), "present": (1.0,)}
    data = json.loads(page.plot(Figure("", ("a",), series, "")))["data"]
    assert [(trace["name"], trace["marker"]["color"]) for trace in data] == [("present", page.COLOURS[1])]
