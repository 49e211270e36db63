"""The benchmark's results as a document, and as tables in markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import geometric_mean

from ..bench.cases import Case
from ..bench.contenders import CONTENDERS, Eager
from ..bench.cuda_contenders import CUDA_CONTENDERS
from ..bench.results import FLOOR, OURS, Measurement, Results
from ..words import capitalised, count
from .document import Document, Figure, Section, Table, digits, duration, number, ratio

EAGER = Eager.name
ALL = CONTENDERS | {name: each for name, each in CUDA_CONTENDERS.items() if name not in CONTENDERS}
PEERS = tuple(name for name in ALL if name != OURS)
LABELS = {name: contender.label for name, contender in ALL.items()} | {FLOOR: "streaming floor"}
HOW_TO_READ = (
    "Times are medians of interleaved runs in one process. A ratio above 1 says how many times quicker addnorm is; "
    "the last column is addnorm's time over that of streaming the same bytes into existing tensors, where 1 is the "
    "limit. GB/s counts the bytes that the operation has to move, no more. There is no ratio where outputs disagree."
)


def document(results: Results) -> Document:
    """Everything that was measured: a section per group, with its table and its bandwidth."""
    sections = tuple(section(group, measurements) for group, measurements in results.groups.items())
    return Document("addnorm bench", (*summary(results), HOW_TO_READ), sections, facts(results))


def summary(results: Results) -> tuple[str, ...]:
    """Where addnorm failed, the ratios to each peer over all cases, and what disagreed."""
    lines = [
        f"No time: {LABELS[OURS]}, {m.case}: {m.reasons[OURS]}"
        for m in results.measurements
        if OURS in m.reasons and OURS not in m.seconds
    ]
    for name in PEERS:
        ratios = [r for m in results.measurements if (r := m.ratio(name)) is not None]
        if ratios:
            ahead = sum(r > 1 for r in ratios)
            lines.append(
                f"{ratio(geometric_mean(ratios))} {LABELS[name]} in the geometric mean, {digits(min(ratios))} to "
                f"{digits(max(ratios))}; ahead in {ahead} of {count(len(ratios), 'case')}."
            )
    wrong = [
        f"{LABELS.get(name, name)}, {m.case}: {m.reasons[name]}"
        for m in results.measurements
        for name in m.seconds
        if name in m.reasons
    ]
    lines += [f"Outputs disagree, no ratio: {line}" for line in wrong]
    return tuple(lines)


def section(group: str, measurements: Sequence[Measurement]) -> Section:
    peers = timed(measurements)
    columns = ("shape", "dtype", "addnorm", "GB/s", *(f"vs {name}" for name in peers), "over floor")
    rows = tuple(
        (
            m.case.shape,
            m.case.dtype,
            duration(m.seconds.get(OURS)),
            number(m.bandwidth()),
            *(ratio(m.ratio(name)) for name in peers),
            ratio(m.to_floor),
        )
        for m in measurements
    )
    figure = Figure(
        title="Useful bandwidth",
        categories=tuple(f"{m.case.shape} {m.case.dtype}" for m in measurements),
        series={LABELS[name]: tuple(m.bandwidth(name) for m in measurements) for name in LABELS},
        unit="GB/s",
        logarithmic=True,
    )
    table = Table(columns, rows, labels=2, notes=notes(measurements))
    return Section(capitalised(group), tables=(table,), figures=(figure,))


def timed(measurements: Sequence[Measurement]) -> list[str]:
    """The peers that have a time in any case."""
    return [name for name in PEERS if any(name in m.seconds for m in measurements)]


def notes(measurements: Iterable[Measurement]) -> tuple[str, ...]:
    """Who is missing and why, each reason once."""
    found: dict[tuple[str, str], list[str]] = {}
    for m in measurements:
        for name, reason in m.reasons.items():
            found.setdefault((name, reason), []).append(f"{m.case.shape} {m.case.dtype}")
    return tuple(
        f"{LABELS.get(name, name)}: {reason} ({where[0] if len(where) == 1 else f'{len(where)} cases'})"
        for (name, reason), where in found.items()
    )


def facts(results: Results) -> dict[str, str]:
    """Where the numbers were taken."""
    machine = results.machine
    backends = sorted({m.backend for m in results.measurements})
    return {
        "CPU": f"{machine.cpu}, {count(machine.cores, 'core')}, {count(machine.threads, 'thread')}",
        "Caches": ", ".join(f"{level} {size}" for level, size in machine.caches.items()) or "unknown",
        "Huge pages": machine.huge_pages,
        "addnorm": f"{machine.addnorm}, backend {' and '.join(backends)}, instruction set {machine.isa}",
        "torch": machine.torch,
        "ONNX Runtime": machine.onnxruntime,
        "Python": machine.python,
        "System": machine.system,
        "Taken": f"{machine.date}, in {duration(results.seconds)}",
    }


# -- the tables of the README and the docs ---------------------------------------------------------------


def markdown(results: Results) -> str:
    """LayerNorm in tables with shapes down and a number for each dtype in a cell: all groups, then each by itself."""
    groups = {group: found for group, found in results.groups.items() if is_plain(found[0].case)}
    machine = results.machine
    common = dtypes(m for found in groups.values() for m in found)
    fewer = "".join(f", in {group} {dtypes(found)}" for group, found in groups.items() if dtypes(found) != common)
    caption = (
        f"{common} in each cell{fewer}. {machine.cpu}, {count(machine.threads, 'thread')}, {machine.isa}; "
        f"addnorm {machine.addnorm}, torch {machine.torch}, ONNX Runtime {machine.onnxruntime}; {machine.date[:10]}. "
        "Times are medians of interleaved runs; `floor` is addnorm's time over that of streaming the same bytes."
    )
    parts = [f"**Times quicker than {LABELS[EAGER]}**", "", *overview(groups), "", caption]
    for group, measurements in groups.items():
        parts += ["", f"**{capitalised(group)}**", "", *pivot(measurements)]
    return "\n".join(parts)


def dtypes(measurements: Iterable[Measurement]) -> str:
    return " / ".join(dict.fromkeys(m.case.dtype for m in measurements))


def is_plain(case: Case) -> bool:
    return case.norm == "layer" and not case.stream and not case.out


def overview(groups: dict[str, list[Measurement]]) -> list[str]:
    """One markdown table: how many times quicker than torch eager each group is."""
    columns = {group: by_shape(measurements) for group, measurements in groups.items()}
    shapes = list(dict.fromkeys(shape for column in columns.values() for shape in column))
    lines = heading(["shape", *columns])
    for shape in shapes:
        cells = [[ratio(m.ratio(EAGER)) for m in column.get(shape, ())] for column in columns.values()]
        lines.append(row([shape, *(" / ".join(cell) for cell in cells)]))
    return lines


def pivot(measurements: Sequence[Measurement]) -> list[str]:
    """One markdown table: a group against every peer and the floor."""
    peers = timed(measurements)
    lines = heading(["shape", "addnorm", *(f"vs {LABELS[name]}" for name in peers), "floor"])
    for shape, cells in by_shape(measurements).items():
        columns = [
            [duration(m.seconds.get(OURS)) for m in cells],
            *([ratio(m.ratio(name)) for m in cells] for name in peers),
            [ratio(m.to_floor) for m in cells],
        ]
        lines.append(row([shape, *(" / ".join(column) for column in columns)]))
    return lines


def by_shape(measurements: Iterable[Measurement]) -> dict[str, list[Measurement]]:
    shapes: dict[str, list[Measurement]] = {}
    for m in measurements:
        shapes.setdefault(m.case.shape, []).append(m)
    return shapes


def heading(columns: Sequence[str], labels: int = 1) -> list[str]:
    return [row(columns), row(["-"] * labels + ["-:"] * (len(columns) - labels))]


def row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"
