"""Every check is seen to fail: each wrong backend is rejected by the check named beside it."""

from __future__ import annotations

import pytest

from addnorm.backends import BACKENDS

from .support.acceptance import CHECKS
from .support.mutants import ROWS, Mutant, Row


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.mutant.__name__}-{row.rejected_by}")
def test_mutant_is_rejected(row: Row, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BACKENDS, Mutant.name, row.mutant())
    with pytest.raises(AssertionError):
        CHECKS[row.rejected_by](Mutant.name)


def test_every_check_rejects_something() -> None:
    assert {row.rejected_by for row in ROWS} == set(CHECKS)


@pytest.mark.parametrize("check", ["results_agree", "outputs_may_be_inputs", "seeds_come_from_torch"])
def test_a_mutant_without_a_fault_passes(check: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BACKENDS, Mutant.name, Mutant())
    CHECKS[check](Mutant.name)
