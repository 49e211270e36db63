"""``addnorm inspect``"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..progress import Progress
from ..words import count
from .errors import CommandError, UsageError
from .output import add_model, add_output, check_output, deliver, progress, read

if TYPE_CHECKING:
    from ..xray import Inspection

TEXT = "an X-ray of what Add & Norm does in a model: every site measured, and what is suspicious about it"
BATCH = 16  # sentences


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model(parser, otherwise="; else MiniLM")
    parser.add_argument(
        "--text", metavar="FILE", type=Path, help="sentences, one a line, an even number; else a chapter of Alice"
    )
    add_output(parser)


def run(args: argparse.Namespace) -> None:
    check_output(args)
    sentences = pairs(args.text) if args.text else None
    from ..machine import describe
    from ..report.inspect import document

    with progress(args) as report_progress:
        found = inspected(args.model, sentences, report_progress)
    deliver(args, {**found.to_dict(), "machine": asdict(describe())}, lambda: document(found))


def pairs(path: Path) -> list[str]:
    """The sentences of a file; the loss is that of each two which follow each other."""
    sentences = read(path)
    if not sentences or len(sentences) % 2:
        raise UsageError(f"{path} has {count(len(sentences), 'sentence')}, one a line: give an even number")
    return sentences


def inspected(name: str | None, sentences: list[str] | None, report_progress: Progress) -> Inspection:
    """The model, run over the text, forward and backward."""
    from ..demo import minilm
    from ..demo.folder import UnusableError, batch_of, check_installed, folder_of, load, pair_loss
    from ..demo.pair import check_runs
    from ..xray import inspect

    try:
        check_installed()
        model, tokenizer = minilm.load() if name is None else load(folder_of(name))
        sentences = sentences or minilm.load_sentences()
        check_runs(model, batch_of(model, tokenizer, sentences[:2]))
    except ImportError as error:
        raise CommandError(str(error)) from error
    except (UnusableError, OSError) as error:
        raise UsageError(str(error)) from error

    def batches() -> Iterator[Any]:
        parts = [sentences[i : i + BATCH] for i in range(0, len(sentences), BATCH)]
        for done, part in enumerate(parts):
            report_progress("inspect", done, len(parts))
            yield batch_of(model, tokenizer, part)

    try:
        return inspect(model, batches(), loss=pair_loss)
    except ValueError as error:
        raise CommandError(str(error)) from error
