"""``addnorm explain``"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from .errors import UsageError
from .output import add_output, check_output, deliver, progress

if TYPE_CHECKING:
    from ..claims import Claim

TEXT = "what Add & Norm is, and what is true of each common claim about it, by experiments that take seconds"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("claim", metavar="CLAIM", nargs="?", help="a claim's name or number; all by default")
    add_output(parser)


def run(args: argparse.Namespace) -> None:
    check_output(args)
    from ..claims import explain
    from ..report.explain import document

    claims = chosen(args.claim)
    with progress(args) as report_progress:
        result = explain(claims, report_progress)
    deliver(args, result.to_dict(), lambda: document(result))


def chosen(wanted: str | None) -> list[Claim]:
    """One claim by name or number, or all."""
    from ..claims import CLAIMS

    found = [claim for claim in CLAIMS.values() if wanted in (None, claim.name, str(claim.number))]
    if not found:
        known = ", ".join(f"{claim.number} {claim.name}" for claim in CLAIMS.values())
        raise UsageError(f"there is no claim {wanted!r}; there are: {known}")
    return found
