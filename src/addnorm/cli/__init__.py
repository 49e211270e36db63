"""The command line: ``addnorm COMMAND``.

Results go to stdout and progress to stderr; with ``--json`` stdout is one JSON object. Exit codes: 0 done, 1 failed,
2 wrong arguments, 130 interrupted. A command is a file with ``TEXT``, ``add_arguments(parser)`` and ``run(args)``; what
it needs is imported when it runs.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from ..machine import version
from ..words import capitalised
from .errors import CommandError, UsageError
from .table import COMMANDS

EPILOG = "exit codes: 0 done, 1 failed, 2 wrong arguments, 130 interrupted"


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
    return 0


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="addnorm",
        description="The transformer's Add & Norm sublayer in one pass over memory.",
        epilog=EPILOG,
    )
    parser.add_argument("--version", action="version", version=f"addnorm {version('addnorm')}")
    parser.set_defaults(command=None)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    for name, command in COMMANDS.items():
        sentence = f"{capitalised(command.TEXT)}."
        added = commands.add_parser(name, help=command.TEXT, description=sentence, epilog=EPILOG)
        command.add_arguments(added)
        added.set_defaults(command=command.run)
    return parser
