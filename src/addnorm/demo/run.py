"""The demonstration: what `addnorm fuse` does, with MiniLM on a book, and what it adds to that: embeddings, answers,
and Add & Norm alone. It prints nothing: progress goes to a callback, the findings are returned."""

from __future__ import annotations

import copy
import time

from ..progress import Progress, silent
from . import minilm
from .agreement import QUERIES, agreement, answers, embeddings_of
from .folder import check_installed, pair_loss
from .pair import load_pair, machine, verify
from .result import DemoResult, Model
from .workload import workload

BATCH, TRAINED = 32, 16  # sentences
SHORT = "Down, down, down."


def run(progress: Progress = silent) -> DemoResult:
    """MiniLM on a chapter of a book, before and after `addnorm.fuse`: agreement, answers, times.

    Args:
        progress: Called as ``progress(label, done, total)`` at each step, with done from 0 to total.

    Raises:
        ImportError: where transformers or the weights are not installed; says how to get them.
    """
    check_installed(minilm.NEEDED)
    start = time.perf_counter()
    pair, sentences = load_pair(minilm.PACKAGE, progress), minilm.load_sentences()
    everything, short = pair.batch([*sentences, *QUERIES]), pair.batch([SHORT])
    batch, trained = pair.batch(sentences[:BATCH]), pair.batch(sentences[:TRAINED])
    errors = verify(pair, trained, pair_loss, progress)
    embeddings = {kind: embeddings_of(model, everything) for kind, model in pair.models.items()}

    original = pair.models["before"]
    captured = copy.deepcopy(original)
    captured.compile(backend="eager")
    models = {"before": original, "captured": captured, "after": pair.models["after"]}
    workloads = (
        workload("one short sentence", models, short, training=False, rounds=100, progress=progress),
        workload(f"{BATCH} sentences", models, batch, training=False, rounds=25, progress=progress),
        workload(f"training step, {TRAINED} sentences", models, trained, training=True, rounds=9, progress=progress),
    )
    report = pair.report  # now of training too
    return DemoResult(
        machine=machine(report),
        model=Model(
            name=minilm.NAME,
            layers=original.config.num_hidden_layers,
            width=original.config.hidden_size,
            parameters=sum(p.numel() for p in original.parameters()),
            text=minilm.TEXT,
            sentences=len(sentences),
        ),
        report=report,
        agreement=agreement({kind: found[: len(sentences)] for kind, found in embeddings.items()}, errors),
        queries=answers(embeddings["before"], embeddings["after"], sentences),
        workloads=workloads,
        seconds=time.perf_counter() - start,
    )
