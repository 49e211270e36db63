"""``addnorm demo``"""

from __future__ import annotations

import argparse

from .errors import CommandError
from .output import add_output, check_output, deliver, progress

TEXT = "MiniLM on a chapter of a book, before and after fusing: do the results agree, and what is gained"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_output(parser)


def run(args: argparse.Namespace) -> None:
    check_output(args)
    from ..demo.folder import UnusableError
    from ..demo.run import run
    from ..report.demo import document

    try:
        with progress(args) as report_progress:
            result = run(report_progress)
    except (ImportError, UnusableError) as error:
        raise CommandError(str(error)) from error
    deliver(args, result.to_dict(), lambda: document(result))
