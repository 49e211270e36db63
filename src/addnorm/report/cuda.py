"""The GPU benchmark's results as a document, with its roofline, and as the README's table."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import median

from ..bench.results import FLOOR, OURS, Measurement, Results
from ..bench.targets import Verdict, verdicts
from ..plot import Curve, Plot
from ..words import capitalised, count
from . import bench
from .document import Document, Section, Table, digits, duration, number, ratio

LARGE = 2048  # rows beyond which a case is drawn: smaller ones are served from the L2
HOW_TO_READ = (
    "Times are the GPU's, medians of interleaved runs in one process: of replayed CUDA graphs, or between events where "
    "a note says so. The host's time to issue a call is apart. % of copy is the time of a device copy of the same "
    "bytes, in the same run, over addnorm's. A ratio above 1 says how many times quicker addnorm is; there is none "
    "where outputs disagree. torch.compile is autotuned. Up to some megabytes all work from the L2 cache."
)


def document(results: Results) -> Document:
    """The targets, then a section per group, with its table and its roofline."""
    found = verdicts(results)
    measured = [verdict for verdict in found if verdict.met is not None]
    met = f"{sum(bool(v.met) for v in measured)} of {count(len(measured), 'target')} met, {len(found)} in all."
    checks = (f"{capitalised(check)}." for check in results.checks)
    sections = [targets(found)]
    sections += [section(group, measurements) for group, measurements in results.groups.items()]
    lines = (*checks, *bench.summary(results), met, HOW_TO_READ)
    return Document("addnorm bench, GPU", lines, tuple(sections), facts(results))


def targets(found: Sequence[Verdict]) -> Section:
    columns = ("regime", "met", "target", "worst", "of", "at")
    return Section("Targets", tables=(Table(columns, tuple(target_row(verdict) for verdict in found), labels=2),))


def target_row(verdict: Verdict) -> tuple[str, ...]:
    target, worst = verdict.target, verdict.worst
    scale = target.scale
    goal = f"{'<=' if scale.less else '>='} {target.goal:g}{scale.unit}"
    shown = "–" if worst is None else f"{digits(worst)}{scale.unit}"
    word = {None: "not measured", True: "yes", False: "no"}[verdict.met]
    return (target.regime, word, goal, shown, str(verdict.cases), verdict.case.shape if verdict.case else "–")


def section(group: str, measurements: Sequence[Measurement]) -> Section:
    peers = bench.timed(measurements)
    columns = ("shape", "dtype", "addnorm", "GB/s", "% of copy", *(f"vs {name}" for name in peers), "host")
    rows = tuple(
        (
            m.case.shape,
            m.case.dtype,
            duration(m.seconds.get(OURS)),
            number(m.bandwidth()),
            number(m.percent_of_copy()),
            *(ratio(m.ratio(name)) for name in peers),
            duration(m.host.get(OURS)),
        )
        for m in measurements
    )
    table = Table(columns, rows, labels=2, notes=(*bench.notes(measurements), *clocks(measurements)))
    return Section(capitalised(group), tables=(table,), figures=roofline(measurements))


def clocks(measurements: Iterable[Measurement]) -> tuple[str, ...]:
    """Who could not be captured in a graph, each reason once."""
    found = {
        (name, clock): None for m in measurements for name, clock in m.clocks.items() if not clock.startswith("graph")
    }
    return tuple(f"{bench.LABELS.get(name, name)}: timed by {clock}" for name, clock in found)


def roofline(measurements: Sequence[Measurement]) -> tuple[Plot, ...]:
    """GB/s, and percent of a copy, over the width, where the data is large and bfloat16."""
    drawn = sorted((m for m in measurements if m.case.rows > LARGE and m.case.dtype == "bf16"), key=lambda m: m.case.d)
    if len(drawn) < 2:
        return ()
    names = [name for name in (OURS, *bench.PEERS, FLOOR) if any(name in m.seconds for m in drawn)]
    labels = bench.LABELS | {FLOOR: "device copy"}
    widths = tuple(m.case.d for m in drawn)

    def curves(value: str) -> tuple[Curve, ...]:
        return tuple(
            Curve(
                labels[name],
                (tuple(getattr(m, value)(name) for m in drawn),),
                style="dashes" if name == FLOOR else "line",
            )
            for name in names
        )

    return (
        Plot("Useful bandwidth", widths, curves("bandwidth"), "width", "GB/s", log_x=True),
        Plot("Percent of a device copy", widths, curves("percent_of_copy"), "width", "%", log_x=True),
    )


def facts(results: Results) -> dict[str, str]:
    """Where the numbers were taken."""
    machine = results.machine
    host = [m.host[OURS] for m in results.measurements if OURS in m.host]
    return {
        "GPU": machine.gpu,
        "CUDA": f"{machine.cuda}, Triton {machine.triton}",
        "CPU": f"{machine.cpu}, {count(machine.cores, 'core')}",
        "addnorm": machine.addnorm,
        "torch": machine.torch,
        "Peers": ", ".join(f"{name} {version}" for name, version in machine.peers.items()) or "none installed",
        "Host": f"{duration(median(host)) if host else '–'} to issue a call of addnorm, the median of the cases",
        "Python": machine.python,
        "System": machine.system,
        "Taken": f"{machine.date}, in {duration(results.seconds)}",
    }


def markdown(results: Results) -> str:
    """The targets, then percent of copy and ratios by width for every group of large cases."""
    parts = [*lines(targets(verdicts(results)).tables[0]), ""]
    for group, measurements in results.groups.items():
        large = [m for m in measurements if m.case.rows > LARGE]
        if large:
            parts += [f"**{capitalised(group)}**", "", *lines(section(group, large).tables[0]), ""]
    machine = results.machine
    peers = "".join(f", {name} {version}" for name, version in machine.peers.items())
    parts.append(
        f"{machine.gpu}; addnorm {machine.addnorm}, torch {machine.torch}, Triton {machine.triton}{peers}; "
        f"{machine.date[:10]}. {HOW_TO_READ}"
    )
    return "\n".join(parts)


def lines(table: Table) -> list[str]:
    return [*bench.heading(table.columns, table.labels), *map(bench.row, table.rows)]
