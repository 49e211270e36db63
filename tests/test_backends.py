from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from addnorm import add_norm, explain_dispatch
from addnorm.backends import BACKENDS, Backend, Support, explain, native, select
from addnorm.backends.eager import Eager
from addnorm.call import Call, describe

from .support import precision
from .support.acceptance import CHECKS, fingerprint
from .support.calls import routes
from .support.poison import ENVIRONMENT

ROOT = Path(__file__).parents[1]
PRECISION = [check.__name__ for check in precision.CHECKS]  # in test_exactness.py
SETS = ("generic", "avx2", "avx512", "avx512_bf16")


@pytest.mark.parametrize("check", [name for name in CHECKS if name not in PRECISION])
@pytest.mark.parametrize("backend", routes())
def test_backend_is_acceptable(backend: str | None, check: str) -> None:
    CHECKS[check](backend)


def python(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )


def in_a_process(names: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The acceptance checks in a fresh interpreter, where malloc hands out poisoned memory."""
    return python("-m", "tests.support.acceptance", *names.split(), **ENVIRONMENT, **environment)


def fingerprint_under(**environment: str) -> str:
    done = python("-c", "from tests.support.acceptance import fingerprint; print(fingerprint('cpu'))", **environment)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("isa", SETS)
def test_instruction_set_is_acceptable(isa: str) -> None:
    """Each set that this machine has; the one in use by default is covered by the tests above."""
    if native.EXTENSION is None:
        pytest.skip(native.REASON)
    if isa not in native.EXTENSION.isas():
        pytest.skip(f"this machine has {', '.join(native.EXTENSION.isas())}")
    done = in_a_process("cpu", ADDNORM_CPU_ISA=isa)
    assert done.returncode == 0, done.stdout + done.stderr


def test_instruction_sets_give_the_same_bits() -> None:
    """Those with a fused multiply-add."""
    if native.EXTENSION is None:
        pytest.skip(native.REASON)
    sets = [isa for isa in native.EXTENSION.isas() if isa != "generic"]
    assert len({fingerprint_under(ADDNORM_CPU_ISA=isa) for isa in sets}) <= 1, ", ".join(sets)


def test_one_thread_from_the_start_gives_the_same_bits() -> None:
    if native.EXTENSION is None:
        pytest.skip(native.REASON)
    for threads in ("1", "2"):
        assert fingerprint_under(OMP_NUM_THREADS=threads) == fingerprint("cpu"), f"{threads} threads"


def test_unknown_instruction_set_is_an_error() -> None:
    if native.EXTENSION is None:
        pytest.skip(native.REASON)
    done = in_a_process("cpu", ADDNORM_CPU_ISA="mmx")
    assert done.returncode != 0
    assert "mmx" in done.stderr


class Refuses(Eager):
    """Takes no call, and says so."""

    name = "refuses"

    def supports(self, call: Call) -> Support:
        return Support.no("it never does")


@pytest.fixture
def refusing(monkeypatch: pytest.MonkeyPatch) -> Backend:
    backend = Refuses()
    rest = dict(BACKENDS)
    for name in rest:
        monkeypatch.delitem(BACKENDS, name)
    monkeypatch.setitem(BACKENDS, "refuses", backend)
    for name, other in rest.items():
        monkeypatch.setitem(BACKENDS, name, other)
    return backend


def test_automatic_choice_passes_over_what_refuses(refusing: Backend) -> None:
    call = describe(torch.ones(2, 3))
    assert select(call) is not refusing
    assert explain(call).support["refuses"] == Support.no("it never does")
    assert "refuses: no, it never does" in str(explain(call))


def test_explicit_choice_never_falls_back(refusing: Backend) -> None:
    with pytest.raises(ValueError, match="backend='refuses' can not take this call: it never does"):
        add_norm(torch.ones(2, 3), backend="refuses")


def test_unknown_backend_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"backend='gpu' is unknown; there are: .*'eager'"):
        add_norm(torch.ones(2, 3), backend="gpu")


def test_the_choice_can_be_asked_for() -> None:
    first = "cpu" if native.EXTENSION is not None else "eager"
    assert explain_dispatch(torch.ones(2, 3), torch.ones(2, 3), norm="rms").chosen == first
    meta = explain_dispatch(torch.ones(2, 3, device="meta"))
    assert meta.chosen == "eager"
    assert "meta" in meta.support["cpu"].reason


def test_the_cpu_backend_says_why_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "EXTENSION", None)
    monkeypatch.setattr(native, "REASON", "it was not built")
    with pytest.raises(ValueError, match="it was not built"):
        add_norm(torch.ones(2, 3), backend="cpu")


def test_another_thread_count_is_left_alone() -> None:
    threads = torch.get_num_threads()
    add_norm(torch.ones(100, 300))
    assert torch.get_num_threads() == threads
