"""The demonstration, step by step. It prints nothing: progress goes to a callback, the findings are returned."""

from __future__ import annotations

import copy
import platform
import time
from pathlib import Path

import torch

from .. import __version__
from ..fusing import fuse
from .agreement import QUERIES, agreement, answers, embeddings_of, gradients
from .minilm import NAME, TEXT, Tokenizer, check_installed, load_model, load_sentences
from .result import DemoResult, Machine, Model
from .timing import Progress, workload

BATCH = 32
SHORT = "Down, down, down."


def silent(label: str, done: int, total: int) -> None:
    """No progress."""


def run(progress: Progress = silent) -> DemoResult:
    """MiniLM on a chapter of a book, before and after `addnorm.fuse`: agreement, answers, times.

    Args:
        progress: Called as ``progress(label, done, total)`` at each step, with done from 0 to total.

    Raises:
        ImportError: where transformers or the weights are not installed; says how to get them.
    """
    check_installed()
    start = time.perf_counter()
    progress("load the model and the text", 0, 1)
    model, tokenizer, sentences = load_model(), Tokenizer(), load_sentences()
    fused, captured = copy.deepcopy(model), copy.deepcopy(model)
    handle = fuse(fused)
    captured.compile(backend="eager")
    everything, batch, short = tokenizer([*sentences, *QUERIES]), tokenizer(sentences[:BATCH]), tokenizer([SHORT])
    progress("load the model and the text", 1, 1)

    label = "compare with the original and with float64"
    compared = {"before": model, "after": fused, "exact": copy.deepcopy(model).double()}
    embeddings, grads = {}, {}
    for done, (kind, each) in enumerate(compared.items()):
        progress(label, done, len(compared))
        embeddings[kind] = embeddings_of(each, everything)
        grads[kind] = gradients(each, batch)
    progress(label, len(compared), len(compared))
    report = handle.report.to_dict()
    del compared, each

    models = {"before": model, "captured": captured, "after": fused}
    workloads = (
        workload("one short sentence", models, short, training=False, rounds=100, progress=progress),
        workload(f"{BATCH} sentences", models, batch, training=False, rounds=25, progress=progress),
        workload(f"training step, {BATCH} sentences", models, batch, training=True, rounds=9, progress=progress),
    )
    return DemoResult(
        machine=machine(report["sites"]),
        model=Model(
            name=NAME,
            layers=model.config.num_hidden_layers,
            width=model.config.hidden_size,
            parameters=sum(p.numel() for p in model.parameters()),
            text=TEXT,
            sentences=len(sentences),
        ),
        report=report,
        agreement=agreement({kind: found[: len(sentences)] for kind, found in embeddings.items()}, grads),
        queries=answers(embeddings["before"], embeddings["after"], sentences),
        workloads=workloads,
        seconds=time.perf_counter() - start,
    )


def machine(sites: list[dict]) -> Machine:
    import transformers

    return Machine(
        cpu=cpu_name(),
        threads=torch.get_num_threads(),
        torch=torch.__version__,
        transformers=transformers.__version__,
        python=platform.python_version(),
        system=platform.platform(terse=True),
        addnorm=__version__,
        backend=", ".join(sorted({site["backend"] for site in sites if site["fused"]})) or "none",
    )


def cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
