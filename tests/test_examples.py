"""The examples run under every placement, and learn something in a few steps."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.mark.parametrize(("file", "placement"), [("encoder", "hybrid_norm"), ("decoder", "sub_ln")])
def test_example_learns(file: str, placement: str) -> None:
    command = [sys.executable, f"{file}.py", "--placement", placement, "--steps", "60"]
    done = subprocess.run(command, cwd=EXAMPLES, capture_output=True, text=True, check=True)
    assert done.stdout.startswith(f"{placement}: 8 sublayers in 4 layers")
    (loss,) = re.findall(r"step 60: .* on unseen text ([\d.]+)", done.stdout)
    assert float(loss) < 3.6  # who guesses among the text's 56 characters has 4
