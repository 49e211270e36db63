"""`addnorm fuse`: what it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest

from addnorm import cli


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ((), "no config.json"),
        (("config.json",), "holds no weights"),
        (("config.json", "pytorch_model.bin"), "only pytorch_model.bin, a pickle, which could run code"),
    ],
)
def test_a_folder_without_a_safe_model(
    files: tuple[str, ...], reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in files:
        (tmp_path / name).write_text("{}")
    assert cli.main(["fuse", str(tmp_path), "--json"]) == 2
    assert reason in capsys.readouterr().err


def test_a_path_without_a_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["fuse", "no_such_model", "--json"]) == 2
    assert "neither a folder nor an installed package" in capsys.readouterr().err
