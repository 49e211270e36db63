"""The Triton kernels without a GPU: interpreted, and compiled ahead of time."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from addnorm import add_norm, explain_dispatch
from addnorm.backends.triton import backend

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")


def interpreted(*command: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    return subprocess.run(
        [sys.executable, *command], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=400, check=False
    )


def test_interpreted_kernels_are_acceptable() -> None:
    done = interpreted("-m", "tests.support.interpreted")
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_interpreter_is_taken_by_name_alone() -> None:
    done = interpreted("-c", "import addnorm, torch; print(addnorm.explain_dispatch(torch.ones(2, 3)))")
    assert "triton takes" not in done.stdout
    assert "triton: yes, Triton interprets its kernels here" in done.stdout


def test_without_the_interpreter_cpu_tensors_are_refused() -> None:
    if os.environ.get("TRITON_INTERPRET") == "1":
        pytest.skip("the interpreter is on")
    with pytest.raises(ValueError, match="backend='triton' can not take this call: x is on cpu"):
        add_norm(torch.ones(2, 3), backend="triton")


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ModuleNotFoundError("No module named 'triton'", name="triton"), "triton is not installed: pip install triton"),
        (AttributeError("no attribute 'knobs'"), "triton does not load: AttributeError: no attribute 'knobs'"),
    ],
)
def test_a_missing_or_broken_triton_is_a_reason(error: Exception, reason: str, monkeypatch: Any) -> None:
    def broken(name: str) -> None:
        raise error

    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(backend, "load", backend.load.__wrapped__)
    monkeypatch.setattr(backend.importlib, "import_module", broken)
    assert reason in str(explain_dispatch(torch.ones(2, 3)))
    assert add_norm(torch.ones(2, 3)).shape == (2, 3)
    with pytest.raises(ValueError, match="backend='triton' can not take this call"):
        add_norm(torch.ones(2, 3), backend="triton")


COMPILE = """
from addnorm.backends.triton.aot import VARIANTS, compile_row, fullest, table, variants
rows = list(table())
assert len(rows) >= 40
chosen = [(*entry, *VARIANTS[i % len(VARIANTS)]) for i, entry in enumerate(rows)]
chosen = [(*entry, norm, fullest(entry[0]) if option == "full" else option) for *entry, norm, option in chosen]
chosen += [variant for variant in variants() if (*variant[:3],) not in rows]  # the widest that one program holds
for variant in chosen:
    c = compile_row(*variant, 90)
    assert c.spills == 0, f"spills: {c}"
    assert c.wide, f"other than 16-byte accesses: {c}"
    assert c.option != "plain" or c.asked <= c.resident, f"more programs than fit: {c}"
"""


def test_every_row_of_the_launch_table_compiles_without_spills() -> None:
    """For sm_90, norms and options in turn; `make aot` compiles them all, for sm_80 and sm_100 too. No registers are
    spilled, every access to an activation has 16 bytes, and a persistent grid asks for no more programs than fit."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", COMPILE], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
