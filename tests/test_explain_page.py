"""The page of `addnorm explain` in a real headless Chromium."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from addnorm.claims import CLAIMS, Explanation, explain
from addnorm.claims.base import Claim, Evidence, near, reported
from addnorm.plot import Control, Curve, Plot
from addnorm.report import page
from addnorm.report.explain import document, held, section

from .support.browser import chromium, resize
from .test_report import HOSTILE, Loads

SHORT = ("composition", "vanishing", "range", "padding", "affine")  # the experiments of a moment


def result() -> Explanation:
    return explain([CLAIMS[name] for name in SHORT], lambda *_: None)


def hostile() -> Explanation:
    """Text and names that would run, were they not escaped."""
    plot = Plot(HOSTILE, (HOSTILE, "b"), (Curve(HOSTILE, ((1.0, 2.0), (2.0, 1.0))),), HOSTILE, HOSTILE,
                (Control(HOSTILE, (HOSTILE, "b")),))  # fmt: skip
    claim = Claim(1, "x", HOSTILE, HOSTILE, "right", HOSTILE, HOSTILE, HOSTILE, lambda _: Evidence((), plot))
    return explain([claim, claim], lambda *_: None)


def test_the_page_holds_all_that_it_needs() -> None:
    parsed = Loads(page.render(document(result())))
    assert parsed.loads == []
    assert parsed.tags.count("figure") == len(SHORT)
    assert "svg" in parsed.tags


def test_what_is_only_reported_is_not_counted_as_inside() -> None:
    numbers = (near("a", 1.0, 1.0, 0.1, "why"), near("b", 2.0, 1.0, 0.1, "why"), reported("c", 3.0, "open"))
    evidence = Evidence(numbers, Plot("", (0,), ()))
    assert held(evidence) == "1 of 2"
    (table,) = section(CLAIMS["history"], evidence).tables
    assert [row[-1] for row in table.rows] == ["yes", "NO", "–"]
    assert table.notes[:2] == ("a; b: why.", "c: open.")


def test_hostile_claims_stay_text() -> None:
    assert "img" not in Loads(page.render(document(hostile()))).tags


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    folder = tmp_path_factory.mktemp("browser")
    with chromium(folder / "profile") as opened:
        html = folder / "page.html"
        html.write_text(page.render(document(result())), encoding="utf-8")
        opened.get(html.as_uri())
        yield opened


def test_it_loads_offline_without_a_word_on_the_console(browser: Any) -> None:
    assert browser.get_log("browser") == []
    assert browser.execute_script("return performance.getEntriesByType('resource').length") == 0
    assert browser.execute_script("return document.querySelectorAll('.plot .main-svg').length") >= len(SHORT)
    assert browser.execute_script("return document.querySelector('h1').textContent") == "What is Add & Norm?"


SORT = """
const table = document.querySelector('table');
const heading = [...table.querySelectorAll('th')].find((th) => th.textContent === arguments[0]);
heading.click();
return [...table.tBodies[0].rows].map((row) => row.cells[heading.cellIndex].textContent);
"""


def test_a_heading_sorts_its_table_either_way(browser: Any) -> None:
    up, down = (browser.execute_script(SORT, "verdict") for _ in range(2))
    assert up == sorted(up)
    assert down == sorted(down, reverse=True)
    assert up != down
    claims = browser.execute_script(SORT, "claim")  # "1. ...", "11. ...": by number
    numbers = [int(claim.split(".")[0]) for claim in claims]
    assert numbers == sorted(numbers)
    assert claims != sorted(claims)


MOVE = """
const figure = document.querySelectorAll('figure')[arguments[0]];
const plot = figure.querySelector('.plot');
const drawn = () => [...plot.querySelectorAll('.trace path')].map((path) => path.outerHTML).join();
const before = drawn();
const input = figure.querySelectorAll('input, select')[arguments[1]];
input.value = input.value === '0' ? '1' : '0';
input.dispatchEvent(new Event('input'));
return [before !== drawn(), plot.data.map((trace) => Array.from(trace.y))];
"""


@pytest.mark.parametrize(("claim", "control"), [(0, 0), (1, 0), (2, 0), (2, 1), (3, 0), (4, 2)])
def test_a_control_moves_its_curves_to_the_frame_it_names(browser: Any, claim: int, control: int) -> None:
    moved, shown = browser.execute_script(MOVE, claim, control)
    assert moved
    positions = browser.execute_script(
        "return [...document.querySelectorAll('figure')[arguments[0]].querySelectorAll('input, select')]"
        ".map((input) => Number(input.value))",
        claim,
    )
    plot = CLAIMS[SHORT[claim]].run(0).plot
    frame = 0
    for position, each in zip(positions, plot.controls, strict=True):
        frame = frame * len(each.values) + position
    for values, curve in zip(shown, plot.curves, strict=True):
        wanted = curve.frames[frame if len(curve.frames) > 1 else 0]
        assert values == [page.short(value) for value in wanted]


@pytest.mark.parametrize("width", [360, 768, 1280])
def test_no_width_needs_sideways_scrolling(browser: Any, width: int) -> None:
    resize(browser, width, 800)
    browser.execute_async_script("const done = arguments[0]; setTimeout(done, 300)")
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize(("width", "height"), [(1280, 800), (390, 844)])
def test_the_answer_fits_one_screen(browser: Any, width: int, height: int) -> None:
    resize(browser, width, height)
    browser.execute_async_script("const done = arguments[0]; setTimeout(done, 300)")
    bottom = "return document.getElementById('section-1').getBoundingClientRect().bottom + scrollY"
    assert browser.execute_script(bottom) <= height


def test_a_claim_leads_to_its_section(browser: Any) -> None:
    links = browser.execute_script("return [...document.querySelectorAll('td a')].map((a) => a.getAttribute('href'))")
    assert sorted(links) == sorted(f"#claim-{name}" for name in SHORT)
    assert browser.execute_script("return arguments[0].every((link) => document.querySelector(link))", links)


def test_what_is_hostile_does_not_run(browser: Any, tmp_path: Path) -> None:
    html = tmp_path / "hostile.html"
    html.write_text(page.render(document(hostile())), encoding="utf-8")
    here = browser.current_url
    browser.get(html.as_uri())
    _, shown = browser.execute_script(MOVE, 0, 0)  # an alert would make this call fail
    assert shown == [[2.0, 1.0]]
    assert browser.execute_script("return document.querySelectorAll('main img').length") == 0
    browser.get(here)
