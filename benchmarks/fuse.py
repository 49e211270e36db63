"""What `addnorm.fuse` gains in whole models, in each mode: inference and a training step with dropout, interleaved.

python -m benchmarks.fuse [MODEL ...] [--modes eager modules inductor] [--out FILE]     # adds to FILE
python -m benchmarks.fuse --markdown --out FILE                                         # the tables of FILE

Given are the medians of the rounds' ratios, the original's time over the fused model's, and their 95 % confidence
intervals. The control is a second copy of the original: its ratio should be 1.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from statistics import median

import torch
from torch import Tensor, nn

import addnorm
from addnorm.clock import ratio, samples
from addnorm.demo import minilm
from addnorm.machine import describe, version
from tests.support.models import Size, build, cases, first

FILE = Path("benchmarks/results/fuse.json")
SIZE = Size(layers=2, width=256, heads=4, inner=1024, words=1000, sentences=4, length=64, image=32)
REAL = "MiniLM, real weights"
MODES = ("eager", "modules", "inductor")
SAMPLE = 2e-2  # seconds: models run in loops, and the first call behind another model's finds cold caches
NATIVE = "torch.compile"  # beside mode "inductor": the same without fusing
BESIDE = "inductor beside torch.compile"

Models = dict[str, nn.Module]


def model_and_inputs(name: str) -> tuple[nn.Module, dict[str, Tensor]]:
    if name == REAL:
        model, tokenizer = minilm.load()
        return model, tokenizer(minilm.load_sentences()[:16])
    case = cases(SIZE)[name]
    torch.manual_seed(1)
    return build(case), case.inputs()


def twin(model: nn.Module) -> nn.Module:
    """A copy with the same parameters: copies of them differ in speed by where their memory lies."""
    return copy.deepcopy(model, {id(t): t for t in (*model.parameters(), *model.buffers())})


def fused(model: nn.Module, modes: list[str]) -> Models:
    """The model, a copy as it is, one in each mode, and one compiled without fusing where a mode compiles."""
    models = {"original": model, **{kind: twin(model) for kind in ("control", *modes)}}
    for mode in modes:
        addnorm.fuse(models[mode], mode=mode)
    if "inductor" in modes:
        models[NATIVE] = torch.compile(twin(model))  # in place, torch's own containers would not be captured
    return models


def inference(model: nn.Module, inputs: dict[str, Tensor]) -> Callable[[], object]:
    model.eval()
    return torch.no_grad()(lambda: first(model(**inputs)))


def training(model: nn.Module, inputs: dict[str, Tensor]) -> Callable[[], object]:
    """Forward with dropout and backward."""
    model.train()

    def step() -> None:
        model.zero_grad()
        first(model(**inputs)).square().mean().backward()

    return step


USES = {"inference": inference, "training": training}


def agree(models: Models, inputs: dict[str, Tensor]) -> bool:
    """Whether every copy's output is as near to float64 as the original's."""
    wide = {name: t.double() if t.is_floating_point() else t for name, t in inputs.items()}
    with torch.no_grad():
        exact = first(copy.deepcopy(models["original"]).double().eval()(**wide))
        errors = {}
        for name, model in models.items():
            model.eval()
            for _ in range(2):  # the first call of a fused model tries its sites, the second may be another code
                output = first(model(**inputs))
            errors[name] = ((output.double() - exact).norm() / exact.norm()).item()
    return all(error <= 2 * errors["original"] + 2**-22 for error in errors.values())


def timer() -> Callable[[], float]:
    """The clock; of one thread its CPU time, which others on the machine disturb least."""
    return time.process_time if torch.get_num_threads() == 1 else time.perf_counter


def measure(name: str, modes: list[str], rounds: int, budget: float) -> list[dict]:
    model, inputs = model_and_inputs(name)
    models = fused(model, modes)
    if not agree(models, inputs):
        raise SystemExit(f"{name}: outputs disagree, no times are given")
    rows = []
    for use, step in USES.items():
        steps = {kind: step(each, inputs) for kind, each in models.items()}
        for each in steps.values():
            for _ in range(3):
                each()
        times = samples(steps, rounds=rounds, budget=budget, least=SAMPLE, timer=timer())
        seconds = {kind: median(taken) for kind, taken in times.items()}
        ratios = {kind: ratio(times["original"], taken) for kind, taken in times.items() if kind != "original"}
        if NATIVE in times:
            ratios[BESIDE] = ratio(times[NATIVE], times["inductor"])
        rows.append({"model": name, "use": use, "rounds": len(times["original"]), "seconds": seconds, "ratios": ratios})
        found = ", ".join(f"{kind} {each}" for kind, each in ratios.items())
        print(f"{name}, {use}: {1e3 * seconds['original']:.1f} ms; {found}", flush=True)
    return rows


def markdown(results: dict) -> str:
    """One table for the modes that need no compiler, one for Inductor; then what is surely slower."""
    lines = []
    for kinds in (("eager", "modules"), (NATIVE, "inductor", BESIDE)):
        rows = [row for row in results["rows"] if {*kinds} & {*row["ratios"]}]
        if not rows:
            continue
        lines += [
            f"| model | | original, ms | control | {' | '.join(kinds)} |",
            f"| - | - | -: | -: |{' -: |' * len(kinds)}",
        ]
        for row in rows:
            found = [row["ratios"].get(kind) for kind in ("control", *kinds)]
            cells = ["" if each is None else "{:.2f} ({:.2f}-{:.2f})".format(*each) for each in found]
            lines.append(
                f"| {row['model']} | {row['use']} | {1e3 * row['seconds']['original']:.1f} | {' | '.join(cells)} |"
            )
        lines += ["", f"Wholly below 1: {'; '.join(slower(rows, ('control', *kinds))) or 'nothing'}.", ""]
    machine = results["machine"]
    where = f"{machine['cpu']}, threads: {machine['threads']}, {machine['isa']}; torch {machine['torch']}, "
    versions = f"transformers {results['transformers']}, addnorm {machine['addnorm']}; {machine['date'][:10]}."
    return "\n".join([*lines, where + versions])


def slower(rows: list[dict], kinds: tuple[str, ...]) -> list[str]:
    """What has an interval below 1."""
    return [
        f"{row['model']}, {row['use']}, {kind}"
        for row in rows
        for kind in kinds
        if row["ratios"].get(kind, [1])[-1] < 1
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=[], help="of the table, by default all")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=["eager", "modules"])
    parser.add_argument("--rounds", type=int, default=41)
    parser.add_argument("--seconds", type=float, default=20, help="no new round of a use begins after these")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="with 1, CPU time is measured")
    parser.add_argument("--out", type=Path, default=FILE)
    parser.add_argument("--markdown", action="store_true")
    args = parser.parse_args()
    results = json.loads(args.out.read_text()) if args.out.exists() else {"rows": []}
    if args.markdown:
        print(markdown(results))
        return
    warnings.simplefilter("ignore")
    torch.set_num_threads(args.threads)
    models = [REAL, *cases(SIZE)]
    for name in args.models or models:
        rows = measure(name, args.modes, args.rounds, args.seconds)
        replaced = {(row["model"], row["use"], *row["seconds"]) for row in rows}
        kept = [row for row in results["rows"] if (row["model"], row["use"], *row["seconds"]) not in replaced]
        results = {
            "machine": asdict(describe()),
            "transformers": version("transformers"),
            "size": asdict(SIZE),
            "rows": sorted([*kept, *rows], key=lambda row: models.index(row["model"])),
        }
        args.out.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
