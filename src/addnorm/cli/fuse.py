"""``addnorm fuse``"""

from __future__ import annotations

import argparse
from pathlib import Path

from .errors import CommandError, UsageError
from .output import add_model, add_output, check_output, deliver, progress, read

TEXT = "a model of yours, before and after fusing: do the results agree, and what is gained"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    parser.add_argument(
        "--text",
        metavar="FILE",
        type=Path,
        help="sentences, one a line, the first 16 of which are used; else a chapter of Alice",
    )
    parser.add_argument("--train", action="store_true", help="measure a training step instead of inference")
    add_output(parser)


def run(args: argparse.Namespace) -> None:
    check_output(args)
    from ..demo import local
    from ..demo.folder import UnusableError
    from ..report.fuse import document

    lines = None if args.text is None else read(args.text)
    try:
        with progress(args) as report_progress:
            result = local.run(args.model, lines, training=args.train, progress=report_progress)
    except ImportError as error:
        raise CommandError(str(error)) from error
    except UnusableError as error:
        raise UsageError(str(error)) from error
    deliver(args, result.to_dict(), lambda: document(result))
