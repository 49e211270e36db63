from __future__ import annotations

import json
import re
import types
from pathlib import Path

import pytest
import torch

from addnorm import doctor, machine
from addnorm.backends import native


def test_without_an_extension_it_says_why_what_it_costs_and_what_helps() -> None:
    seen = doctor.diagnose("9.9.0")
    assert not seen.extension.loaded
    assert "torch 9.9.0 is running" in seen.extension.reason
    text = str(seen)
    for part in (seen.extension.reason, doctor.COST, doctor.REMEDY):
        assert part in text


def test_the_remedy_names_the_setuptools_that_the_build_needs() -> None:
    """Without build isolation nothing installs it, and an older one does not read pyproject.toml."""
    pyproject = (Path(__file__).parents[1] / "pyproject.toml").read_text()
    (needed,) = re.findall(r'"(setuptools>=\d+)"', pyproject)
    assert needed in doctor.REMEDY


def test_with_an_extension_it_says_what_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.SimpleNamespace(isa=lambda: "avx2", isas=lambda: ["generic", "avx2"])
    monkeypatch.setattr(native, "load", lambda version: (module, ""))
    found = doctor.look_at_extension("2.13.0")
    assert (found.loaded, found.isa, found.isas) == (True, "avx2", ("generic", "avx2"))
    assert "_cpu_torch_2_13 loaded; runs avx2, this CPU has generic, avx2" in "\n".join(doctor.extension_lines(found))


def test_dispatch_names_the_choice_and_the_reasons() -> None:
    seen = doctor.diagnose()
    by_call = {example.call: example for example in seen.examples}
    meta = by_call["float32 on meta"]
    assert meta.chosen == "eager"
    assert meta.backends == {"cpu": "x is on meta", "triton": "x is on meta", "eager": ""}
    assert "float32 on meta    -> eager  (cpu: no, x is on meta; triton: no, x is on meta; eager: yes)" in str(seen)
    assert by_call["bfloat16 on cpu"].backends["eager"] == ""


def test_missing_extras_are_named_with_their_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(doctor.EXTRAS, "bench", ("rich", "no_such_package"))
    seen = doctor.diagnose()
    assert seen.extras["bench"] == ("no_such_package",)
    assert "extra bench   lacks no_such_package: pip install 'addnorm[bench]'" in str(seen)


def test_a_machine_that_does_not_tell_of_its_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "CACHES", tmp_path)
    for index, names in enumerate((("level", "type"), ("level", "type", "size"))):
        (tmp_path / f"index{index}").mkdir()
        for name in names:
            (tmp_path / f"index{index}" / name).write_text(f"{index}\n")
    assert machine.caches() == {"L1": "1"}


def test_it_is_json_ready() -> None:
    data = doctor.diagnose("9.9.0").to_dict()
    assert json.loads(json.dumps(data))["extension"]["loaded"] is False


def test_the_state_of_the_gpu_kernels_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """No CUDA, a broken Triton, an old card: the library works, and the doctor says what is wrong."""
    from addnorm import doctor, machine
    from addnorm.backends.triton import backend

    def seen() -> str:
        return next(line for line in str(doctor.diagnose()).splitlines() if line.startswith("GPU kernels"))

    monkeypatch.setattr(doctor, "CALLS", ())
    if not torch.cuda.is_available():
        assert "none run: torch" in seen()
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(machine, "gpu", lambda: "a card")
    for broken in ("triton is not installed: pip install triton", "triton does not load: AttributeError: knobs"):
        monkeypatch.setattr(backend, "load", lambda broken=broken: (None, broken))
        assert f"none run: {broken}" in seen()
    kernels = types.SimpleNamespace(INTERPRETED=False, trouble=lambda: "")
    monkeypatch.setattr(backend, "load", lambda: (kernels, ""))
    for capability, word in (((7, 5), "none run: cuda:0 has compute capability (7, 5)"), ((9, 0), "run on a card")):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index, found=capability: found)
        assert word in seen()
    kernels.trouble = lambda: "triton does not start: RuntimeError: Failed to find C compiler"
    assert "none run: triton does not start: RuntimeError: Failed to find C compiler" in seen()
