"""``addnorm doctor``"""

from __future__ import annotations

import argparse

from .output import json_text, stdout

TEXT = "what is built and what runs here, and which backend a call takes"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> None:
    from ..doctor import diagnose

    diagnosis = diagnose()
    with stdout():
        print(json_text(diagnosis.to_dict()) if args.json else diagnosis)
