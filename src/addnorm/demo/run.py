"""The demonstration, step by step. It prints nothing: progress goes to a callback, the findings are returned."""

from __future__ import annotations

import copy
import platform
import time
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..fusing import fuse
from ..machine import cpu_model, version
from .agreement import QUERIES, agreement, answers, embeddings_of, gradients
from .minilm import NAME, TEXT, Batch, Tokenizer, check_installed, load_model, load_sentences
from .result import DemoResult, Machine, Model
from .timing import Progress, workload

if TYPE_CHECKING:
    from transformers import BertModel

BATCH, TRAINED = 32, 16  # sentences
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
    everything, short = tokenizer([*sentences, *QUERIES]), tokenizer([SHORT])
    batch, trained = tokenizer(sentences[:BATCH]), tokenizer(sentences[:TRAINED])
    progress("load the model and the text", 1, 1)

    embeddings, grads = outputs(model, fused, everything, trained, progress)
    report = handle.report.to_dict()
    models = {"before": model, "captured": captured, "after": fused}
    workloads = (
        workload("one short sentence", models, short, training=False, rounds=100, progress=progress),
        workload(f"{BATCH} sentences", models, batch, training=False, rounds=25, progress=progress),
        workload(f"training step, {TRAINED} sentences", models, trained, training=True, rounds=9, progress=progress),
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


def outputs(
    model: BertModel, fused: BertModel, sentences: Batch, batch: Batch, progress: Progress
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Embeddings of all sentences and gradients of one batch, each "before", "after" and "exact", in float64."""
    models = {"before": model, "after": fused, "exact": copy.deepcopy(model).double()}
    embeddings, grads = {}, {}
    for done, (kind, each) in enumerate(models.items()):
        progress("compare with the original and with float64", done, len(models))
        embeddings[kind] = embeddings_of(each, sentences)
        grads[kind] = gradients(each, batch)
    progress("compare with the original and with float64", len(models), len(models))
    return embeddings, grads


def machine(sites: list[dict]) -> Machine:
    return Machine(
        cpu=cpu_model(),
        threads=torch.get_num_threads(),
        torch=torch.__version__,
        transformers=version("transformers"),
        python=platform.python_version(),
        system=platform.platform(terse=True),
        addnorm=version("addnorm"),
        backend=", ".join(sorted({site["backend"] for site in sites if site["fused"]})) or "none",
    )
