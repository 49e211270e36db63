"""What goes into a command and comes out: a text; stdout, a page, a saved file; progress goes to stderr."""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import io
import json
import os
import secrets
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..as_json import finite
from ..progress import Progress
from .errors import CommandError, UsageError

if TYPE_CHECKING:
    from ..report.document import Document


def add_output(parser: argparse.ArgumentParser) -> Any:
    """How a result is given: the group of which one may be chosen for stdout."""
    parser.add_argument("--html", metavar="FILE", type=Path, help="also write one self-contained page")
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    return group


def add_model(parser: argparse.ArgumentParser, otherwise: str = "") -> None:
    """A model of the user's, as `demo.folder.folder_of` takes it; it may be left out where there is another."""
    what = "a folder with config.json, tokenizer.json and *.safetensors, or an installed package that carries one"
    parser.add_argument("model", metavar="PATH_OR_PACKAGE", nargs="?" if otherwise else None, help=f"{what}{otherwise}")


def check_output(args: argparse.Namespace, *, plain: bool = False) -> None:
    """Refuses, before any work, what could not be shown or written after it; `plain` text needs no package."""
    needed = [] if plain or args.json or getattr(args, "markdown", False) else ["rich"]
    needed += ["jinja2", "plotly"] if args.html else []
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    if missing:
        raise CommandError(f"{' and '.join(missing)} not installed: pip install 'addnorm[report]', or use --json")
    paths = [path for path in (args.html, getattr(args, "out", None)) if path is not None]
    for path in paths:
        check_writable(path)
    if len({os.path.realpath(path) for path in paths}) < len(paths):
        raise UsageError(f"--out and --html are one file: {args.out}")


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


def read(path: Path) -> list[str]:
    """The lines of a text that have any words."""
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"can not read {path}: {getattr(error, 'strerror', None) or error}") from error
    return [line for line in lines if line]


def deliver(
    args: argparse.Namespace,
    data: dict[str, Any],
    document: Callable[[], Document],
    markdown: Callable[[], str] | None = None,
) -> None:
    """The page first, as the reader of stdout, `head` say, may end it; a page that fails takes nothing from stdout."""
    try:
        if args.html:
            from ..report import page

            write(args.html, page.render(document()))
            print(f"addnorm: wrote {args.html}", file=sys.stderr)
    finally:
        show(args, data, document, markdown)


def show(
    args: argparse.Namespace,
    data: dict[str, Any],
    document: Callable[[], Document],
    markdown: Callable[[], str] | None,
) -> None:
    """On stdout, in the form that was asked for."""
    with stdout():
        if args.json:
            print(json_text(data))
        elif markdown is not None:
            print(markdown())
        elif importlib.util.find_spec("rich") is None:
            from ..report import plain

            print(plain.text(document()))
        else:
            from ..report import terminal

            terminal.show(document())


@contextlib.contextmanager
def stdout() -> Iterator[None]:
    """What is printed meanwhile has arrived at the end; a reader who is gone, `head` say, has seen enough. What the
    encoding lacks is replaced."""
    out = sys.stdout  # None where it was closed from the start
    try:
        if isinstance(out, io.TextIOWrapper):
            out.reconfigure(errors="replace")
        yield
        if out is not None:
            out.flush()
    except OSError as error:
        if out is not None:
            os.dup2(os.open(os.devnull, os.O_WRONLY), out.fileno())  # for what the interpreter's end still writes
        if not isinstance(error, BrokenPipeError):
            raise CommandError(f"can not write the result: {error.strerror}") from error


def write(path: Path, text: str) -> None:
    """Whole or not at all, where the path is a plain file."""
    try:
        if path.exists() and not path.is_file():  # /dev/stdout, a pipe
            path.write_text(text, encoding="utf-8")
            return
        path = path.resolve()
        part = path.with_name(f".{secrets.token_hex(8)}.part")  # the path's own name may be as long as names can be
        try:
            part.write_text(text, encoding="utf-8")
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        raise CommandError(f"can not write {path}: {error.strerror}") from error


def json_text(data: Any) -> str:
    return json.dumps(finite(data), indent=1, allow_nan=False)


@contextlib.contextmanager
def progress(args: argparse.Namespace) -> Iterator[Progress]:
    """A bar on stderr, or plain lines without rich. What others print meanwhile goes to stderr too."""
    with contextlib.redirect_stdout(sys.stderr) if args.json else contextlib.nullcontext():
        if importlib.util.find_spec("rich") is None:
            yield lambda label, done, total: print(f"[{done}/{total}] {label}", file=sys.stderr)
        else:
            from ..report.terminal import progress_bar

            with progress_bar() as report_progress:
                yield report_progress
