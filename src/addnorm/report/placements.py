"""The comparison of the placements as a document."""

from __future__ import annotations

from ..comparison import Comparison
from ..words import count
from .document import Document, Figure, Section, Table, digits, duration, number, ratio


def document(result: Comparison) -> Document:
    """What each placement is, what it costs, and what becomes of a deep toy model under it."""
    sections = [algebra(result), costs(result), gradients(result)]
    if result.seeds:
        sections.append(training(result))
    machine = result.machine
    facts = {
        "CPU": f"{machine.cpu}, {count(machine.threads, 'thread')}",
        "addnorm": machine.addnorm,
        "torch": machine.torch,
        "Took": duration(result.seconds),
    }
    return Document("addnorm placements", summary(result), tuple(sections), facts)


def summary(result: Comparison) -> tuple[str, ...]:
    """Who learned the toy task and who did not."""
    layers = f"{count(result.layers, 'layer')} of width {result.width}"
    if not result.seeds:
        return (f"{count(len(result.rows), 'placement')}, {layers}, not trained.",)
    learned = [row.name for row in result.rows if row.loss is not None and row.loss < result.chance / 2]
    others = [row.name for row in result.rows if row.name not in learned]
    return (
        f"{layers}, {count(result.steps, 'step')} of Adam without warm-up, median of "
        f"{count(result.seeds, 'seed')}: who guesses has a loss of {digits(result.chance)}.",
        f"Less than half of that: {', '.join(learned) or 'none'}.",
        f"Not: {', '.join(others) or 'none'}.",
        "A toy says which placements train at all, not which is best in a model of yours.",
    )


def algebra(result: Comparison) -> Section:
    rows = tuple(("" if index else row.name, line) for row in result.rows for index, line in enumerate(row.algebra))
    text = ("x is the sublayer's input, h the stream, f the sublayer, N and M norms.",)
    return Section("Algebra", text, (Table(("placement", "what runs"), rows, labels=2),))


def costs(result: Comparison) -> Section:
    rows = tuple((row.name, str(row.parameters), f"{row.reads:.2f}", f"{row.writes:.2f}") for row in result.rows)
    text = (
        "Parameters of the norms and scales; tensors of shape (..., d) that the sums and norms read and write per "
        "sublayer in a forward without dropout, counted while they run.",
    )
    return Section("Costs", text, (Table(("placement", "parameters", "reads", "writes"), rows),))


def gradients(result: Comparison) -> Section:
    rows = tuple(
        (row.name, number(row.gradients[0]), number(row.gradients[-1]), ratio(row.spread)) for row in result.rows
    )
    figure = Figure(
        title="Gradient norm of the feed-forward matrices at initialisation",
        categories=tuple(str(layer) for layer in range(1, result.layers + 1)),
        series={row.name: tuple(value or None for value in row.gradients) for row in result.rows},
        unit="gradient norm, by layer",
        logarithmic=True,
    )
    table = Table(("placement", "first layer", "last layer", "largest / smallest"), rows)
    return Section("Gradients at initialisation", tables=(table,), figures=(figure,))


def training(result: Comparison) -> Section:
    rows = tuple((row.name, number(row.loss), number(min(row.losses)), number(max(row.losses))) for row in result.rows)
    figure = Figure(
        title="Loss after training, median over the seeds",
        categories=tuple(row.name for row in result.rows),
        series={"loss": tuple(row.loss for row in result.rows)},
        unit="cross entropy",
    )
    return Section("Toy task", tables=(Table(("placement", "loss", "least", "most"), rows),), figures=(figure,))
