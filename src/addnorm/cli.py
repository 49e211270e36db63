"""The command line: ``addnorm demo | bench | doctor``.

Results go to stdout and progress to stderr; with ``--json`` stdout is one JSON object. Exit codes: 0 done, 1 failed,
2 asked wrongly. What a command needs is imported when it runs.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import math
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .bench import Case, Results
    from .report.document import Document

Progress = Callable[[str, int, int], None]  # of what is under way, steps done, steps in all

EPILOG = """exit codes: 0 done, 1 failed, 2 asked wrongly"""


class UsageError(Exception):
    """What was asked can not be done, and why: exit code 2."""


class CommandError(Exception):
    """What was asked failed: exit code 1."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command; its exit code."""
    parser = make_parser()
    args = parser.parse_args(argv)
    if args.command is None:
        parser.print_help(sys.stderr)
        return 2
    try:
        args.command(args)
    except (UsageError, CommandError) as error:
        print(f"addnorm: {error}", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1
    except KeyboardInterrupt:
        print("addnorm: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of stdout, `head` say, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


# -- the commands ----------------------------------------------------------------------------------------


def demo(args: argparse.Namespace) -> None:
    check_output(args)
    from .demo.run import run

    try:
        with progress(args) as report_progress:
            result = run(report_progress)
    except ImportError as error:
        raise CommandError(str(error)) from error
    deliver(args, result.to_dict(), lambda: demo_document(result))


def demo_document(result: Any) -> Document:
    from .report.demo import document

    return document(result)


def bench(args: argparse.Namespace) -> None:
    check_output(args)
    results = load(args.load) if args.load else measure(args)
    if args.out:
        write(args.out, json_text(results.to_dict()))
    if args.markdown:
        from .report import markdown

        print(markdown(results))
        return

    def document() -> Document:
        from .report.bench import document

        return document(results)

    deliver(args, results.to_dict(), document)


def measure(args: argparse.Namespace) -> Results:
    """Runs the benchmark as asked."""
    import torch

    from .bench import full, quick
    from .bench.run import run

    cases = chosen(quick() if args.quick else full(), args.only)
    if args.threads:
        torch.set_num_threads(args.threads)
    warn_if_busy()
    with progress(args) as report_progress:
        return run(cases, report_progress)


def chosen(cases: Sequence[Case], words: str) -> list[Case]:
    """The cases that are described by all of the words."""
    found = [case for case in cases if all(word in str(case) for word in words.split())]
    if not found:
        raise UsageError(f"--only {words!r} leaves no case; a case reads like '{cases[0]}'")
    return found


def load(path: Path) -> Results:
    """Results from a file that `--out` or `--json` gave."""
    from .bench import Results

    try:
        return Results.from_dict(json.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise UsageError(f"can not read {path}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"{path} holds no benchmark result: {error}") from error


def warn_if_busy() -> None:
    load, cores = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0, os.cpu_count() or 1
    if load > cores / 2:
        print(f"addnorm: the machine is busy (load {load:.1f}, {cores} cores), times will suffer", file=sys.stderr)


def doctor(args: argparse.Namespace) -> None:
    from .doctor import diagnose

    diagnosis = diagnose()
    print(json_text(diagnosis.to_dict()) if args.json else diagnosis)


# -- what comes out --------------------------------------------------------------------------------------


def check_output(args: argparse.Namespace) -> None:
    """Refuses, before any work, what could not be shown or written after it."""
    needed = [] if args.json or getattr(args, "markdown", False) else ["rich"]
    needed += ["jinja2", "plotly"] if args.html else []
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    if missing:
        raise CommandError(f"{' and '.join(missing)} not installed: pip install 'addnorm[report]', or use --json")
    for path in (args.html, getattr(args, "out", None)):
        if path is not None:
            check_writable(path)


def check_writable(path: Path) -> None:
    """Tries it, leaving no trace and what is there as it is: permissions do not tell the whole story."""
    try:
        if path.is_dir():
            raise UsageError(f"can not write {path}: it is a folder")
        if path.exists():
            path.open("ab").close()
        else:
            tempfile.TemporaryFile(dir=path.parent).close()
    except OSError as error:
        raise UsageError(f"can not write {path}: {error.strerror}") from error


def deliver(args: argparse.Namespace, data: dict[str, Any], document: Callable[[], Document]) -> None:
    """To stdout first, so that a disk which fills up later loses nothing; then the page."""
    if args.json:
        print(json_text(data))
    else:
        from .report import terminal

        terminal.show(document())
    if args.html:
        from .report import page

        write(args.html, page.render(document()))
        print(f"addnorm: wrote {args.html}", file=sys.stderr)


def write(path: Path, text: str) -> None:
    """Whole or not at all, where the path is a plain file."""
    try:
        if path.exists() and not path.is_file():  # /dev/stdout, a pipe
            path.write_text(text, encoding="utf-8")
            return
        path = path.resolve()
        part = path.with_name(f".{path.name}.part")
        part.write_text(text, encoding="utf-8")
        part.replace(path)
    except OSError as error:
        raise CommandError(f"can not write {path}: {error.strerror}") from error


def json_text(data: Any) -> str:
    return json.dumps(finite(data), indent=1, allow_nan=False, ensure_ascii=False)


def finite(data: Any) -> Any:
    """The same with null for NaN and infinity, which JSON does not have."""
    if isinstance(data, dict):
        return {key: finite(value) for key, value in data.items()}
    if isinstance(data, (list, tuple)):
        return [finite(value) for value in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data


@contextlib.contextmanager
def progress(args: argparse.Namespace) -> Iterator[Progress]:
    """A bar on stderr, or plain lines without rich. What others print meanwhile goes to stderr too."""
    with contextlib.redirect_stdout(sys.stderr) if args.json else contextlib.nullcontext():
        if importlib.util.find_spec("rich") is None:
            yield lambda label, done, total: print(f"[{done}/{total}] {label}", file=sys.stderr)
        else:
            from .report.terminal import progress_bar

            with progress_bar() as report_progress:
                yield report_progress


# -- the arguments ---------------------------------------------------------------------------------------


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="addnorm",
        description="The transformer's Add & Norm sublayer, as quick as the memory allows.",
        epilog=EPILOG,
    )
    parser.add_argument("--version", action="version", version=f"addnorm {metadata.version('addnorm')}")
    parser.set_defaults(command=None)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")

    text = "a real model on real text, before and after fusing: do the results agree, and what is gained"
    add = commands.add_parser("demo", help=text, description=sentence(text), epilog=EPILOG)
    add_output(add)
    add.set_defaults(command=demo)

    text = "Add & Norm against torch eager, torch.compile, ONNX Runtime and the speed of memory"
    add = commands.add_parser("bench", help=text, description=sentence(text), epilog=EPILOG)
    add.add_argument("--quick", action="store_true", help="a look in under a minute instead of about ten")
    add.add_argument("--only", metavar="WORDS", default="", help="only cases with all these words: '4096x768 fp32'")
    add.add_argument("--threads", metavar="N", type=positive, help="of torch and its peers; torch's choice by default")
    add.add_argument("--load", metavar="FILE", type=Path, help="show a saved result instead of measuring")
    add.add_argument("--out", metavar="FILE", type=Path, help="save the result as JSON")
    add_output(add).add_argument("--markdown", action="store_true", help="print the short table of a README")
    add.set_defaults(command=bench)

    text = "what is built and what runs here, and which backend a call takes"
    add = commands.add_parser("doctor", help=text, description=sentence(text), epilog=EPILOG)
    add.add_argument("--json", action="store_true", help="print one JSON object")
    add.set_defaults(command=doctor)
    return parser


def add_output(parser: argparse.ArgumentParser) -> Any:
    """How a result is given: the group of which one may be chosen for stdout."""
    parser.add_argument("--html", metavar="FILE", type=Path, help="also write one self-contained page")
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--json", action="store_true", help="print one JSON object, with hardware and versions")
    return group


def sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


def positive(text: str) -> int:
    value = int(text) if text.isdecimal() else 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be a number >= 1, got {text!r}")
    return value
