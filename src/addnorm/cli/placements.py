"""``addnorm placements``"""

from __future__ import annotations

import argparse

from .errors import UsageError
from .output import add_output, check_output, deliver, progress

TEXT = "the placements side by side: cost, gradients at initialisation, and whether a deep toy model trains"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("names", metavar="NAME", nargs="*", help="placements; all by default")
    parser.add_argument("--layers", metavar="N", type=count, default=18, help="layers of the toy model (default 18)")
    parser.add_argument("--seeds", metavar="N", type=count, default=3, help="trainings of each; 0: none (default 3)")
    parser.add_argument("--steps", metavar="N", type=count, default=100, help="training steps (default 100)")
    add_output(parser)


def count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"must be a whole number from 0 on, got {text!r}")
    return int(text)


def run(args: argparse.Namespace) -> None:
    check_output(args)
    from ..comparison import compare
    from ..placements import PLACEMENTS
    from ..report.placements import document

    unknown = [name for name in args.names if name not in PLACEMENTS]
    if unknown:
        raise UsageError(f"no placement {', '.join(unknown)}; there are: {', '.join(PLACEMENTS)}")
    if args.layers < 1 or args.steps < 1:
        raise UsageError("--layers and --steps must be at least 1")
    with progress(args) as report_progress:
        result = compare(
            args.names or tuple(PLACEMENTS), layers=args.layers, seeds=args.seeds, steps=args.steps,
            progress=report_progress,
        )  # fmt: skip
    deliver(args, result.to_dict(), lambda: document(result))
