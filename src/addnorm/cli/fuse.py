"""``addnorm fuse``"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import CommandError, UsageError
from .output import add_output, check_output, deliver, progress

if TYPE_CHECKING:
    from ..report.document import Document

TEXT = "a model of yours from a local folder, before and after fusing"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="PATH_OR_PACKAGE", help="a folder with config.json and *.safetensors")
    parser.add_argument("--text", metavar="FILE", type=Path, help="sentences, one a line, instead of the demo's")
    parser.add_argument("--train", action="store_true", help="measure a training step instead of inference")
    add_output(parser)


def run(args: argparse.Namespace) -> None:
    check_output(args)
    from ..demo import local

    try:
        lines = None if args.text is None else args.text.read_text(encoding="utf-8").splitlines()
        local.folder_of(args.model)
    except (OSError, ValueError) as error:
        raise UsageError(str(error)) from error
    try:
        with progress(args) as report_progress:
            result = local.run(args.model, lines, training=args.train, progress=report_progress)
    except ImportError as error:
        raise CommandError(f"{error}: pip install 'addnorm[demo]'") from error
    except ValueError as error:
        raise UsageError(str(error)) from error

    def document() -> Document:
        from ..report.fuse import document

        return document(result)

    deliver(args, result.to_dict(), document)
