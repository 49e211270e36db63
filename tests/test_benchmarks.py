"""Every script of benchmarks/ runs, on as little as it can be asked for."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LEAST = {
    "architectures": ["Llama"],
    "cold": ["--width", "64"],
    "fuse": ["BERT", "--modes", "eager", "--rounds", "1", "--seconds", "0"],
    "host": ["--seconds", "0"],
    "measured": ["alone", "--only", "1-64-float32"],
    "monitor": ["--how", "plain", "--batch", "1", "--tokens", "4", "--rounds", "1"],
    "stack": ["--layers", "1", "--width", "64", "--tokens", "4", "--rounds", "1", "--seconds", "0"],
    "training": ["--width", "64"],
}


def test_none_is_left_out() -> None:
    assert {path.stem for path in (ROOT / "benchmarks").glob("*.py")} == set(LEAST)


@pytest.mark.parametrize("name", LEAST)
def test_runs(name: str, tmp_path: Path) -> None:
    out = ["--out", str(tmp_path / "out.json")] if name == "fuse" else []
    command = [sys.executable, "-m", f"benchmarks.{name}", *LEAST[name], *out]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert any(character.isdigit() for character in done.stdout), done.stdout
