"""``addnorm bench``"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..words import count
from .errors import CommandError, UsageError
from .output import add_output, check_output, deliver, json_text, progress, write

if TYPE_CHECKING:
    from ..bench import Case, Results

MEASURING = ("device", "quick", "only", "threads")  # options of a measurement
TEXT = "Add & Norm against torch eager, torch.compile, other libraries and the speed of memory"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--device", choices=("cpu", "cuda"),
        help="cpu by default; cuda checks its kernels before it times them, beside Liger, fla, quack where installed",
    )  # fmt: skip
    parser.add_argument("--quick", action="store_true", help="fewer cases, in a tenth of the time")
    parser.add_argument("--only", metavar="WORDS", default="", help="only cases with all these words: '4096x768 fp32'")
    parser.add_argument(
        "--threads", metavar="N", type=threads, help="threads of torch and its peers; torch's choice by default"
    )
    parser.add_argument("--load", metavar="FILE", type=Path, help="show a saved result instead of measuring")
    parser.add_argument("--out", metavar="FILE", type=Path, help="save the result as JSON")
    add_output(parser).add_argument(
        "--markdown", action="store_true", help="print the tables of the README and the docs"
    )


def threads(text: str) -> int:
    value = int(text) if text.isdecimal() else 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be a number >= 1, got {text!r}")
    most = os.cpu_count() or 1
    if value > most:
        raise argparse.ArgumentTypeError(f"must be at most {most}, the processors of this machine, got {text}")
    return value


def run(args: argparse.Namespace) -> None:
    given = [option for option in MEASURING if getattr(args, option)]
    if args.load and given:
        raise UsageError(f"--load measures nothing: it does not go with --{' and --'.join(given)}")
    check_output(args, plain=args.device == "cuda" or args.load is not None)  # what runs with torch alone
    results = load(args.load) if args.load else measure(args)
    from ..report import bench, cuda

    report = cuda if results.on_gpu else bench
    if args.markdown and not results.on_gpu:
        check_tables(measurement.case for measurement in results.measurements)
    if args.out:
        write(args.out, json_text(results.to_dict()))
    markdown = (lambda: report.markdown(results)) if args.markdown else None
    deliver(args, results.to_dict(), lambda: report.document(results), markdown)


def measure(args: argparse.Namespace) -> Results:
    """Runs the benchmark as asked."""
    import torch

    from .. import bench
    from ..bench.run import run

    lists = {"cpu": (bench.full, bench.quick), "cuda": (bench.cuda_full, bench.cuda_quick)}
    name = args.device or "cpu"
    device = bench.DEVICES[name]
    missing = device.missing()
    if missing:
        raise CommandError(f"--device {name}: {missing}")
    cases = chosen(lists[name][args.quick](), args.only, "--quick --only" if args.quick else "--only")
    if args.markdown and name == "cpu":
        check_tables(cases)
    if args.threads:
        torch.set_num_threads(args.threads)
    warn_if_busy()
    with progress(args) as report_progress:
        try:
            return run(cases, report_progress, device=device)
        except AssertionError as error:
            raise CommandError(f"nothing was timed, as a result is wrong: {error}") from error


def chosen(cases: Sequence[Case], words: str, option: str) -> list[Case]:
    """The cases that are described by all of the words."""
    found = [case for case in cases if set(split(words)) <= set(split(str(case)))]
    if not found:
        known = dict.fromkeys(word for case in cases for word in split(str(case)))
        raise UsageError(f"{option} {words!r} leaves no case; there are cases with these words: {' '.join(known)}")
    return found


def split(words: str) -> list[str]:
    return words.replace(",", "").split()


def check_tables(cases: Iterable[Case]) -> None:
    """Refuses tables of the CPU with nothing in them."""
    from ..report.bench import is_plain

    if not any(is_plain(case) for case in cases):
        raise UsageError("--markdown shows LayerNorm, without the sum and into a new tensor; none of the cases is that")


def load(path: Path) -> Results:
    """Results from a file that `--out` or `--json` gave."""
    from ..bench import Results

    try:
        return Results.from_dict(json.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise UsageError(f"can not read {path}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise UsageError(f"{path} holds no benchmark result: {error}") from error


def warn_if_busy() -> None:
    load, cores = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0, os.cpu_count() or 1
    if load > cores / 2:
        print(
            f"addnorm: the machine is busy (load {load:.1f}, {count(cores, 'core')}), times will suffer",
            file=sys.stderr,
        )
