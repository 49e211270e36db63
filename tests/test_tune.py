"""The script that tunes the launch table, with a clock that is made up; a GPU is needed for its numbers alone."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
pytest.importorskip("triton")

from triton import OutOfResources  # noqa: E402

from addnorm.backends.triton import launch, tune  # noqa: E402
from addnorm.backends.triton.launch import BACKWARD, FORWARD, Backward, Forward  # noqa: E402

TABLES: tuple[dict[int, Any], ...] = (FORWARD, BACKWARD)


def no_spills(row: object, size: int) -> int:
    return 0


@pytest.mark.parametrize("tables", TABLES)
def test_the_present_row_stays_where_nothing_is_quicker(tables: dict[int, Any]) -> None:
    def measure(rows: Mapping[str, Any], size: int) -> dict[str, float]:
        return {name: 1.0 - 0.005 * (name == "1") for name in rows}  # within the noise

    assert tune.retune(tables, measure, no_spills, lambda line: None) == tables


def test_the_quickest_row_that_does_not_spill_is_taken() -> None:
    row = FORWARD[2][-2]
    found = tune.candidates(row, 2)
    assert found[0] == row
    spilling, quick = found[1], found[2]

    def measure(rows: Mapping[str, Any], size: int) -> dict[str, float]:
        return {name: {spilling: 0.1, quick: 0.5}.get(other, 1.0) for name, other in rows.items()}

    best = tune.quickest(row, 2, measure, lambda other, size: int(other == spilling), lambda line: None)
    assert best == quick


def test_a_row_that_asks_for_more_than_there_is_is_left_out() -> None:
    def too_much() -> None:
        raise OutOfResources(300000, 232448, "shared memory")

    assert tune.starts(lambda: None)
    assert not tune.starts(too_much)


@pytest.mark.parametrize("tables", TABLES)
def test_candidates_move_16_bytes_a_thread_and_fit(tables: dict[int, Any]) -> None:
    for size, rows in tables.items():
        for row in rows:
            found = tune.candidates(row, size)
            assert len(found) > 2
            assert len(set(found)) == len(found)
            for other in found[1:]:
                assert other.width == row.width
                assert other.rows > 1 or other.block * size % (16 * 32 * other.warps) == 0
                if isinstance(other, Forward) and other.keep:
                    assert tune.tuned_width(other) * other.rows <= tune.MOST * other.warps * 32
                assert other.rows == 1 or getattr(other, "keep", True), "rows would depend on one another"


@pytest.mark.parametrize("tables", TABLES)
def test_what_is_printed_is_the_table(tables: dict[int, Any]) -> None:
    names: dict[str, Any] = {"Forward": Forward, "Backward": Backward, "ANY": launch.ANY}
    exec(tune.text(tables), names)
    kind = "FORWARD" if tables is FORWARD else "BACKWARD"
    assert {size: names[f"{name}_{kind}"] for size, name in tune.NAMES.items()} == tables


def test_rows_are_chosen_by_width() -> None:
    assert [row.width for row in tune.taken(FORWARD[2], [5120, 4096, 768])] == [1024, 7168]
    assert tune.taken(FORWARD[2], None) == FORWARD[2]


def test_every_candidate_computes_the_same() -> None:
    """Under the interpreter: what is timed is right, whatever row carries it out."""
    code = """
import torch
from addnorm.backends.triton import tune
from addnorm.backends.triton.launch import BACKWARD, FORWARD
torch.manual_seed(0)
for row in (FORWARD[4][0], FORWARD[4][3], BACKWARD[4][0], BACKWARD[4][3]):
    rows = {str(i): other for i, other in enumerate(tune.candidates(row, 4)[:12])}
    calls = tune.workload(rows, 4, "cpu", 5 * 4 * row.width)
    def results(name):
        got = calls[name]()
        return [t for t in (got.values() if isinstance(got, dict) else got[:2]) if t is not None]
    for name in calls:
        for a, b in zip(results("0"), results(name), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], cwd=ROOT, env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def test_without_a_gpu_it_says_so() -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is one")
    done = subprocess.run(
        [sys.executable, "-m", "addnorm.backends.triton.tune"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "sees no CUDA device" in done.stderr
