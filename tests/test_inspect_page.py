"""The page of `addnorm inspect` in a real headless Chromium."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from addnorm.report import inspect as report
from addnorm.report import page
from addnorm.xray import Inspection, inspect

from .support.browser import chromium, resize
from .support.faulty import Pre
from .test_xray import inputs, loss


@pytest.fixture(scope="module")
def found() -> Inspection:
    model = Pre(4).double()
    model.sites[2].linear.weight.data *= 100
    return inspect(model, [inputs()], loss=loss)


@pytest.fixture(scope="module")
def browser(found: Inspection, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    folder = tmp_path_factory.mktemp("inspect")
    with chromium(folder / "profile") as opened:
        html = folder / "page.html"
        html.write_text(page.render(report.document(found)))
        opened.get(html.as_uri())
        yield opened


def test_it_loads_offline_and_says_where_to_look_first(browser: Any) -> None:
    assert browser.get_log("browser") == []
    assert browser.execute_script("return performance.getEntriesByType('resource').length") == 0
    lead = browser.execute_script("return document.querySelector('header .lead').textContent")
    assert "Look first at sites.2.norm" in lead
    assert "Lower the learning rate" in lead  # what to do


KEYS = """
const board = document.querySelector('.board');
const stops = [...board.querySelectorAll('td')].filter((cell) => cell.tabIndex === 0);
stops[0].focus();
const visited = [document.activeElement.dataset.hover];
for (const key of ['ArrowRight', 'ArrowDown', 'ArrowLeft', 'ArrowUp']) {
  document.activeElement.dispatchEvent(new KeyboardEvent('keydown', {key, bubbles: true}));
  visited.push(document.activeElement.dataset.hover);
}
return [stops.length, visited, board.closest('figure').querySelector('.reading').textContent];
"""


def test_the_heat_map_can_be_read_with_the_keyboard(browser: Any) -> None:
    stops, visited, reading = browser.execute_script(KEYS)
    assert stops == 1
    assert len(set(visited[:4])) == 4
    assert visited[4] == visited[0] == reading


def test_headings_of_the_heat_map_are_whole(browser: Any) -> None:
    resize(browser, 1280, 800)
    cut = """
    const right = document.querySelector('.wide').getBoundingClientRect().right;
    return [...document.querySelectorAll('.board th span')].filter(
      (span) => span.getBoundingClientRect().right > right).map((span) => span.textContent);
    """
    assert browser.execute_script(cut) == []


SORT = """
const board = document.querySelector('.board');
const heading = [...board.querySelectorAll('th')].find((th) => th.textContent === arguments[0]);
if (arguments[1]) heading.dispatchEvent(new KeyboardEvent('keydown', {key: arguments[1], bubbles: true}));
else heading.click();
return [...board.tBodies[0].rows].map((row) => row.cells[0].textContent);
"""


def test_the_heat_map_sorts_and_explains_its_cells(browser: Any) -> None:
    up, down, by_enter, by_space = (
        browser.execute_script(SORT, "residual ratio", key) for key in ("", "", "Enter", " ")
    )
    assert (by_enter, by_space) == (up, down)
    assert up == down[::-1]
    assert down[0] == "3 sites.2.norm"
    read = """
    const cell = document.querySelector('.board .beyond');
    cell.dispatchEvent(new PointerEvent('pointerover', {bubbles: true}));
    return [cell.dataset.hover, document.querySelector('.reading').textContent];
    """
    hover, reading = browser.execute_script(read)
    assert hover == reading
    assert "healthy: " in reading


@pytest.mark.parametrize("width", [360, 1280])
def test_figures_are_whole_at_any_width(browser: Any, width: int) -> None:
    resize(browser, width, 800)
    browser.execute_async_script("const done = arguments[0]; setTimeout(done, 400)")
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    cut = """
    return [...document.querySelectorAll('.plot')].filter(
      (plot) => plot.querySelector('.main-svg').getBoundingClientRect().height > plot.clientHeight + 1).length
    """
    assert browser.execute_script(cut) == 0
