"""What is installed, and what happens where the extension is missing."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
import sys
import tarfile
import venv
from pathlib import Path

import pytest
import setuptools
import torch
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

import addnorm
from addnorm.backends import native

ROOT = Path(__file__).parents[1]


def test_the_extension_is_there_where_it_can_be_built() -> None:
    if shutil.which("c++") is None:
        pytest.skip("there is no C++ compiler")
    assert native.EXTENSION is not None, native.REASON


def test_module_name_holds_the_minor_version() -> None:
    assert native.module_name("2.13.0+cpu") == "_cpu_torch_2_13"
    assert native.module_name("2.9.1") == "_cpu_torch_2_9"


def test_an_extension_for_another_torch_is_not_loaded() -> None:
    extension, reason = native.load("9.9.0")
    assert extension is None
    assert "torch 9.9.0 is running" in reason
    running = ".".join(torch.__version__.split(".")[:2])
    assert f"was built for torch {running}" in reason or "is not built" in reason


def test_a_broken_extension_is_a_reason_and_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> None:
        raise ImportError("undefined symbol: zero")

    monkeypatch.setattr(native.importlib, "import_module", broken)
    assert native.load() == (None, "the C++ extension does not load: undefined symbol: zero")


def test_an_extension_for_another_python_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("_cpu_torch_9_9.cpython-39-x86_64-linux-gnu.so", "_cpu_torch_9_8.cpython-311-x86_64-linux-gnu.so"):
        (tmp_path / name).touch()
    monkeypatch.setattr(native, "PACKAGE", tmp_path)
    python = platform.python_version()
    assert native.load("9.9.0")[1] == f"the C++ extension was built for another Python; Python {python} is running"
    assert native.load("9.7.0")[1] == "the C++ extension was built for torch 9.8 and 9.9; torch 9.7.0 is running"


WITHOUT = """
import sys
sys.modules["addnorm._cpu_torch_{}"] = None
import torch, addnorm
from addnorm.backends import native
assert native.EXTENSION is None and native.REASON, native.REASON
x = torch.randn(3, 5, requires_grad=True)
y = addnorm.add_norm(x, x, dropout_p=0.1)
y.sum().backward()
print(addnorm.explain_dispatch(x))
"""


def test_everything_works_without_the_extension_and_the_import_says_so() -> None:
    major, minor = torch.__version__.split(".")[:2]
    code = WITHOUT.format(f"{major}_{minor}")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("eager takes this call")
    (warning,) = (line for line in done.stderr.splitlines() if "Warning" in line)  # once
    assert "RuntimeWarning: addnorm runs CPU calls through plain torch, slowly: the C++ extension" in warning


PYTHON_AUTOGRAD = """
import sys
sys.modules["addnorm._cpu_torch_{}"] = None
import pytest
chosen = "eager and (derivative or gradcheck or keeps or kept or unused or inference or non_leaf or needs)"
sys.exit(pytest.main(["-q", "-p", "no:cacheprovider", "-k", chosen, *sys.argv[1:]]))
"""


def test_the_autograd_in_python_stands_in_for_the_extension() -> None:
    """The operators' own tests, where Python has their autograd."""
    major, minor = torch.__version__.split(".")[:2]
    files = [str(Path(__file__).with_name(f"test_{name}.py")) for name in ("ops", "autograd", "saved")]
    code = PYTHON_AUTOGRAD.format(f"{major}_{minor}")
    done = subprocess.run([sys.executable, "-c", code, *files], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-4000:]  # 5 where no test was chosen


def test_dir_has_every_public_name() -> None:
    """Those too that are loaded when they are first asked for; none of them is loaded for it."""
    code = """
import sys, addnorm
missing = {"add_norm", "AddNorm", "Stack", "fuse", "FusePass", "inspect", "Monitor", "placements"} - set(dir(addnorm))
print(*missing, *[name for name in ("addnorm.fusing", "addnorm.xray", "torch._dynamo") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_star_brings_the_public_names() -> None:
    names: dict[str, object] = {}
    exec("from addnorm import *", names)
    assert {"add_norm", "AddNorm", "Stack", "fuse", "FusePass", "inspect", "Monitor"} <= set(names)
    assert not {"Any", "TYPE_CHECKING", "import_module", "LAZY"} & {*names, *dir(addnorm)}


def test_metadata() -> None:
    meta = importlib.metadata.metadata("addnorm")
    assert meta["Version"] == addnorm.__version__
    assert [r for r in importlib.metadata.requires("addnorm") or [] if "extra" not in r] == ["torch>=2.11"]


def pins() -> list[Requirement]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return [Requirement(line) for line in lines if not line.startswith("#")]


def test_the_oldest_python_has_what_is_pinned() -> None:
    oldest = importlib.metadata.metadata("addnorm")["Requires-Python"].removeprefix(">=")
    installed = {found.name.lower(): found.metadata["Requires-Python"] for found in importlib.metadata.distributions()}
    pinned = [pin for pin in pins() if pin.marker is None or pin.marker.evaluate({"python_version": oldest})]
    needs = {str(pin): installed.get(pin.name.lower()) or "" for pin in pinned}
    assert any(needs.values())
    assert [pin for pin, pythons in needs.items() if oldest not in SpecifierSet(pythons)] == []


def test_tritons_version_is_left_to_torch() -> None:
    """torch's CUDA builds require one each: 2.11 has Triton 3.6.0, 2.13 has 3.7.1, 2.14 has 3.8."""
    (asked,) = re.findall(r'"(triton\b[^"]*)"', (ROOT / "pyproject.toml").read_text())
    assert all(version in Requirement(asked).specifier for version in ("3.6.0", "3.7.1", "3.8.0"))
    assert "triton" not in {pin.name for pin in pins()}


def copy_source(tmp_path: Path) -> Path:
    ignored = shutil.ignore_patterns(".venv", ".git", "build", "dist", "*.so", "*.egg-info", "__pycache__", ".*_cache")
    return shutil.copytree(ROOT, tmp_path / "source", ignore=ignored)


def test_an_sdist_has_the_kernels_where_torch_is_not_there(tmp_path: Path) -> None:
    """An isolated build has no torch, so that setup.py names no sources of the extension."""
    source = copy_source(tmp_path)
    venv.create(tmp_path / "bare")
    (tmp_path / "path").mkdir()
    for package in ("setuptools", "_distutils_hack"):
        (tmp_path / "path" / package).symlink_to(Path(setuptools.__file__).parents[1] / package)
    command = [str(tmp_path / "bare/bin/python"), "setup.py", "-q", "sdist", "-d", str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "path")}
    done = subprocess.run(command, cwd=source, env=environment, capture_output=True, text=True, check=True)
    assert "no torch found" in done.stderr
    with tarfile.open(tmp_path / f"addnorm-{addnorm.__version__}.tar.gz") as packed:
        names = {name.partition("/")[2] for name in packed.getnames()}
    wanted = {str(path.relative_to(source)) for path in (source / "csrc").rglob("*.*")}
    assert wanted
    assert wanted <= names


@pytest.mark.slow
def test_wheel_runs_where_it_is_unpacked(tmp_path: Path) -> None:
    """A wheel built here, installed elsewhere, imported from there, with its kernels."""
    source = copy_source(tmp_path)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    wheel = [*pip, "wheel", "--no-build-isolation", "--no-deps", "--wheel-dir", str(tmp_path), str(source)]
    subprocess.run(wheel, check=True, capture_output=True, text=True)
    (built,) = tmp_path.glob("addnorm-*.whl")
    target = tmp_path / "installed"
    subprocess.run([*pip, "install", "--no-deps", "--target", str(target), str(built)], check=True, capture_output=True)
    code = f"""
import sys
sys.path.insert(0, {str(target)!r})
import torch, addnorm
from pathlib import Path
assert Path(addnorm.__file__).is_relative_to({str(target)!r}), addnorm.__file__
assert (Path(addnorm.__file__).parent / "py.typed").exists()
print(addnorm.explain_dispatch(torch.ones(2, 3)).chosen, addnorm.add_norm(torch.ones(2, 3)).sum().item())
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["cpu" if shutil.which("c++") else "eager", "0.0"], done.stdout + done.stderr
