from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from addnorm import cli
from addnorm.bench import run
from addnorm.bench.cases import Case
from addnorm.bench.contenders import CONTENDERS
from addnorm.cli import errors, output
from addnorm.cli.bench import chosen
from addnorm.demo import run as demo_run

from .test_report import demo_result, results

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "saved.json"
    path.write_text(json.dumps(results().to_dict()))
    return path


@pytest.fixture
def no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails a test in which the long work begins."""

    def begin(*_: object, **__: object) -> None:
        pytest.fail("the work began")

    monkeypatch.setattr(run, "run", begin)
    monkeypatch.setattr(demo_run, "run", begin)


def without(monkeypatch: pytest.MonkeyPatch, *packages: str) -> None:
    """As if these were not installed."""
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name in packages else find(name, *a))


def test_bench_json_is_one_object_from_beginning_to_end(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.setattr("addnorm.bench.quick", lambda: (Case(rows=2, d=32),))
    monkeypatch.setattr(run, "run", partial(run.run, rounds=1, contenders={"addnorm": CONTENDERS["addnorm"]}))
    assert cli.main(["bench", "--quick", "--json"]) == 0
    (measured,) = json.loads(capsys.readouterr().out)["measurements"]
    assert measured["case"]["rows"] == 2
    assert measured["to_floor"] > 0


def test_a_saved_result_comes_back_as_it_was(saved: Path, tmp_path: Path, capsys: Capture) -> None:
    assert cli.main(["bench", "--load", str(saved), "--json", "--out", str(tmp_path / "again.json")]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(saved.read_text())
    assert json.loads((tmp_path / "again.json").read_text()) == json.loads(saved.read_text())


def test_bench_table_page_and_markdown(saved: Path, tmp_path: Path, capsys: Capture) -> None:
    html = tmp_path / "page.html"
    assert cli.main(["bench", "--load", str(saved), "--html", str(html)]) == 0
    assert "32x768" in capsys.readouterr().out
    assert "32x768" in html.read_text()
    assert sorted(tmp_path.iterdir()) == [html, saved]
    assert cli.main(["bench", "--load", str(saved), "--markdown"]) == 0
    tables = capsys.readouterr().out
    assert tables.startswith("**Times quicker than torch eager**")
    assert "\n**Forward**\n" in tables


def test_demo_json_and_page(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Capture) -> None:
    monkeypatch.setattr(demo_run, "run", lambda progress: progress("step", 0, 1) or demo_result())
    html = tmp_path / "page.html"
    assert cli.main(["demo", "--json", "--html", str(html)]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(json.dumps(demo_result().to_dict()))
    assert "MiniLM" in html.read_text()


def test_a_demo_that_lacks_a_package_says_which(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    def lacking(progress: object) -> None:
        raise ImportError("the demonstration needs transformers: pip install 'addnorm[demo]'")

    monkeypatch.setattr(demo_run, "run", lacking)
    assert cli.main(["demo"]) == 1
    assert "pip install 'addnorm[demo]'" in capsys.readouterr().err


@pytest.mark.usefixtures("no_work")
@pytest.mark.parametrize("command", [["demo", "--html"], ["bench", "--html"], ["bench", "--out"]])
def test_an_unwritable_path_is_refused_before_the_work(command: list[str], tmp_path: Path, capsys: Capture) -> None:
    for path, reason in ((tmp_path / "no" / "page", "No such file"), (tmp_path, "it is a folder")):
        assert cli.main([*command, str(path)]) == 2
        assert reason in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    assert cli.main([*command, str(tmp_path / "file" / "page")]) == 2


@pytest.mark.parametrize("form", [[], ["--json"], ["--markdown"]])
def test_the_page_is_written_though_nobody_reads_stdout(form: list[str], saved: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    reader, writer = os.pipe()
    os.close(reader)  # as `| head` that has seen enough
    command = [sys.executable, "-m", "addnorm", "bench", "--load", str(saved), "--html", str(page), *form]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, f"addnorm: wrote {page}\n")
    assert "32x768" in page.read_text()


@pytest.mark.parametrize("command", [["bench", "--load", "SAVED"], ["demo"]])
def test_a_page_that_fails_takes_nothing_from_stdout(
    command: list[str], saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    def full(*_: object) -> None:
        raise errors.CommandError("No space left")

    monkeypatch.setattr(output, "write", full)
    monkeypatch.setattr(demo_run, "run", lambda progress: demo_result())
    filled = [str(saved) if word == "SAVED" else word for word in command]
    assert cli.main([*filled, "--json", "--html", str(tmp_path / "page.html")]) == 1
    captured = capsys.readouterr()
    assert json.loads(captured.out)
    assert "No space left" in captured.err


@pytest.mark.parametrize("command", [["doctor"], ["doctor", "--json"], ["bench", "--load", "SAVED"]])
@pytest.mark.parametrize("full", [False, True])
def test_a_stdout_that_takes_nothing(command: list[str], full: bool, saved: Path) -> None:
    if full:
        stdout = os.open("/dev/full", os.O_WRONLY)
    else:
        reader, stdout = os.pipe()
        os.close(reader)
    filled = [sys.executable, "-m", "addnorm", *(str(saved) if word == "SAVED" else word for word in command)]
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    done = subprocess.run(filled, stdout=stdout, stderr=subprocess.PIPE, text=True, check=False, env=buffered)
    os.close(stdout)
    told = "addnorm: can not write the result: No space left on device\n" if full else ""
    assert (done.returncode, done.stderr) == (int(full), told)


@pytest.mark.parametrize("command", ["doctor", "bench --load SAVED", "bench --load SAVED --json"])
def test_a_stdout_that_is_closed(command: str, saved: Path) -> None:
    filled = f"{sys.executable} -m addnorm {command.replace('SAVED', str(saved))} >&-"
    done = subprocess.run(["sh", "-c", filled], stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("name", ["x" * 250, "µ" * 125])
def test_a_long_name_can_be_written(name: str, tmp_path: Path) -> None:
    output.check_writable(tmp_path / name)
    output.write(tmp_path / name, "text")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [(name, "text")]


@pytest.mark.usefixtures("no_work")
def test_two_results_do_not_go_into_one_file(tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "page")
    assert cli.main(["bench", "--out", str(tmp_path / "page"), "--html", str(tmp_path / "link")]) == 2
    assert "--out and --html are one file" in capsys.readouterr().err


@pytest.mark.parametrize("form", [[], ["--json"], ["--markdown"]])
def test_a_terminal_of_another_encoding(form: list[str], saved: Path) -> None:
    command = [sys.executable, "-m", "addnorm", "bench", "--load", str(saved), *form]
    ascii_only = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=ascii_only)
    assert (done.returncode, done.stderr) == (0, "")
    assert "768" in done.stdout
    assert form != ["--json"] or json.loads(done.stdout) == json.loads(saved.read_text())


def test_a_check_leaves_what_is_there(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    output.check_writable(path)
    assert not path.exists()
    path.write_text("old")
    output.check_writable(path)
    assert path.read_text() == "old"


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "page.html"
    path.write_text("old")

    def full(part: Path, *_: object, **__: object) -> None:
        part.touch()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(errors.CommandError, match="No space left"):
        output.write(path, "new")
    assert path.read_text() == "old"
    assert [*tmp_path.iterdir()] == [path]


@pytest.mark.usefixtures("no_work")
@pytest.mark.parametrize("command", [["bench"], ["demo"], ["bench", "--json", "--html", "page.html"]])
def test_missing_report_packages_are_named(
    command: list[str], monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    without(monkeypatch, "rich", "jinja2", "plotly")
    assert cli.main(command) == 1
    assert "pip install 'addnorm[report]'" in capsys.readouterr().err


def test_json_and_doctor_need_no_report_packages(monkeypatch: pytest.MonkeyPatch, saved: Path, capsys: Capture) -> None:
    without(monkeypatch, "rich", "jinja2", "plotly")
    assert cli.main(["bench", "--load", str(saved), "--json"]) == 0
    monkeypatch.setattr(demo_run, "run", lambda progress: progress("step", 0, 1) or demo_result())
    assert cli.main(["demo", "--json"]) == 0
    assert cli.main(["doctor"]) == 0
    assert "lacks rich, jinja2, plotly" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["fly"], "invalid choice: 'fly'"),
        (["bench", "--threads", "0"], "must be a number >= 1, got '0'"),
        (["bench", "--threads", "1" + 30 * "0"], "processors"),
        (["bench", "--json", "--markdown"], "not allowed with argument"),
    ],
)
def test_bad_usage(arguments: list[str], reason: str, capsys: Capture) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments)
    assert stop.value.code == 2
    assert reason in capsys.readouterr().err


@pytest.mark.usefixtures("no_work")
def test_what_can_not_be_loaded_or_chosen(tmp_path: Path, capsys: Capture) -> None:
    broken = tmp_path / "broken.json"
    for text in ("", "[]", '{"format": 1}', '{"format": 1, "measurements": [{}]}'):
        broken.write_text(text)
        assert cli.main(["bench", "--load", str(broken)]) == 2
        assert "holds no benchmark result" in capsys.readouterr().err
    broken.write_text(100_000 * "[")
    assert cli.main(["bench", "--load", str(broken)]) == 2
    assert "holds no benchmark result" in capsys.readouterr().err
    assert cli.main(["bench", "--load", str(tmp_path / "none.json")]) == 2
    assert cli.main(["bench", "--quick", "--only", "99x99"]) == 2
    assert "--quick --only '99x99' leaves no case; there are cases with these words: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("seconds", {"addnorm": 0.0}),
        ("seconds", {"addnorm": None}),
        ("seconds", {"addnorm": float("inf")}),
        ("seconds", {"addnorm": 10**400}),
        ("seconds", []),
        ("host", {"addnorm": -1.0}),
        ("reasons", ["addnorm"]),
        ("case", {"rows": 3, "d": 64, "dtype": "fp8"}),
        ("case", {"rows": 3, "d": 64, "mode": "forward"}),
        ("case", {"rows": 3, "d": 64, "norm": "batch"}),
        ("case", {"rows": 3, "d": 64, "device": "tpu"}),
        ("case", {"rows": "3", "d": 64}),
        ("case", {"rows": 0, "d": 64}),
    ],
)
def test_a_saved_result_with_something_wrong(field: str, value: object, saved: Path, capsys: Capture) -> None:
    data = json.loads(saved.read_text())
    data["measurements"][0][field] = value
    saved.write_text(json.dumps(data))
    assert cli.main(["bench", "--load", str(saved)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"addnorm: {saved} holds no benchmark result: ")


@pytest.mark.usefixtures("no_work")
def test_cases_are_chosen_by_whole_words(capsys: Capture) -> None:
    assert cli.main(["bench", "--quick", "--only", "4096x76"]) == 2
    assert "leaves no case" in capsys.readouterr().err
    cases = [Case(rows=1, d=8), Case(rows=11, d=8), Case(rows=11, d=8, stream=True)]
    assert chosen(cases, "1x8", "--only") == cases[:1]
    assert chosen(cases, str(cases[2]), "--only") == cases[2:]


@pytest.mark.usefixtures("no_work")
def test_markdown_without_a_case_for_its_tables_is_refused(saved: Path, capsys: Capture) -> None:
    assert cli.main(["bench", "--only", "RMSNorm", "--markdown"]) == 2
    assert "--markdown" in capsys.readouterr().err
    data = json.loads(saved.read_text())
    saved.write_text(json.dumps({**data, "measurements": data["measurements"][2:]}))
    assert cli.main(["bench", "--load", str(saved), "--markdown"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("addnorm: --markdown shows LayerNorm")


@pytest.mark.parametrize("option", [["--only", "fp32"], ["--quick"], ["--threads", "1"], ["--device", "cpu"]])
def test_a_saved_result_is_not_measured(option: list[str], saved: Path, capsys: Capture) -> None:
    assert cli.main(["bench", "--load", str(saved), *option]) == 2
    assert f"it does not go with {option[0]}" in capsys.readouterr().err


def test_without_a_command_it_shows_what_there_is(capsys: Capture) -> None:
    assert cli.main([]) == 2
    shown = capsys.readouterr().err
    assert all(f"    {command} " in shown for command in ("demo", "bench", "doctor"))


def test_infinities_become_null() -> None:
    assert json.loads(output.json_text({"a": [float("nan"), 1.5], "b": (float("inf"),)})) == {
        "a": [None, 1.5],
        "b": [None],
    }


def test_json_is_ascii_whatever_the_encoding() -> None:
    text = output.json_text({"a": "µ\ud800"})
    assert text.isascii()
    assert json.loads(text) == {"a": "µ\ud800"}


def test_as_a_module() -> None:
    command = [sys.executable, "-m", "addnorm", "doctor", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["machine"]["torch"]


def test_importing_the_command_line_is_lean() -> None:
    code = (
        "import sys, addnorm.cli; print([m for m in ('rich', 'plotly', 'jinja2', 'addnorm.bench') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
