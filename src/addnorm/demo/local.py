"""A model from a local folder, before and after fusing: do the results agree, and what is gained."""

from __future__ import annotations

from ..progress import Progress, silent
from .folder import UnusableError
from .minilm import load_sentences
from .pair import load_pair, machine, measure, projection, verify
from .result import Fused

SENTENCES = 16  # of the text, in one batch


def run(name: str, lines: list[str] | None, *, training: bool, progress: Progress = silent, rounds: int = 9) -> Fused:
    """Fuse a local model, compare it with the original and with float64, and time both, interleaved.

    Args:
        name: A folder or an installed package that carries a model.
        lines: Sentences, of which the first 16 are used; None: those of the demonstration.
        training: Time a training step with dropout instead of inference.
        progress: Called as ``progress(label, done, total)`` at each step, with done from 0 to total.
        rounds: Samples of each time.

    Raises:
        ImportError: transformers is not installed.
        UnusableError: no model that can be loaded without running its code, or no text.
    """
    if lines == []:
        raise UnusableError("the text is empty")
    pair = load_pair(name, progress)
    batch = pair.batch((load_sentences() if lines is None else lines)[:SENTENCES])
    errors = verify(pair, batch, projection, progress)
    models = {kind: pair.models[kind] for kind in ("before", "after")}
    label = "training step" if training else "inference"
    seconds = measure(label, models, batch, training=training, loss=projection, rounds=rounds, progress=progress)
    report = pair.report
    kind = type(pair.models["before"]).__name__
    return Fused(str(pair.path), kind, training, machine(report), report, errors, seconds)
