"""What a result says, before it is known where: text, tables and figures, for the terminal and for a page alike."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..plot import Plot


@dataclass(frozen=True)
class Table:
    """Cells as text; the first `labels` columns are words, the others numbers. `links` has, for each row, the section
    that its first cell leads to."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    labels: int = 1
    notes: tuple[str, ...] = ()
    links: tuple[str, ...] = ()


@dataclass(frozen=True)
class Figure:
    """Values over categories; None leaves a gap, and a series without any keeps its colour for other figures. `names`
    says more of each category than its label on the axis."""

    title: str
    categories: tuple[str, ...]
    series: dict[str, tuple[float | None, ...]]
    unit: str
    logarithmic: bool = False
    lines: bool = False  # over depth, say; a logarithmic figure has lines anyway
    x_label: str = ""
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Heatmap:
    """A colour for each row and column; None leaves a cell blank. `hovers` say more about each."""

    title: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    values: tuple[tuple[float | None, ...], ...]
    unit: str
    x_label: str = ""
    y_label: str = ""
    hovers: tuple[tuple[str, ...], ...] = ()


@dataclass(frozen=True)
class Cell:
    """A number on a scale of how near it is to its limit: 0 far, 1 at it, more beyond; None where it has none."""

    text: str
    severity: float | None
    hover: str
    beyond: bool = False  # whether it is a finding

    @property
    def share(self) -> int:
        """The strength of its colour, in per cent: full at twice the limit."""
        return round(50 * min(max(self.severity or 0.0, 0.0), 2.0))


@dataclass(frozen=True)
class Board:
    """A heat map with its numbers in it, as a table that sorts; a pointer on a cell shows its hover below."""

    title: str
    corner: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[Cell, ...]], ...]
    note: str = ""  # how to read it


@dataclass(frozen=True)
class Section:
    """A heading and what stands under it, in this order."""

    title: str
    text: tuple[str, ...] = ()
    tables: tuple[Table, ...] = ()
    figures: tuple[Figure | Plot | Heatmap, ...] = ()
    badge: str = ""  # a word beside the heading
    quote: str = ""  # what is discussed, before the text
    formula: str = ""  # after the text
    picture: str = ""  # name of a template: a drawing beside the text
    boards: tuple[Board, ...] = ()
    anchor: str = ""  # what links lead to


@dataclass(frozen=True)
class Lead:
    """What the reader shall not miss: where to look, and why."""

    title: str
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class Document:
    """A whole report: what was found, in a few sentences, then its sections, then where it was found."""

    title: str
    summary: tuple[str, ...]
    sections: tuple[Section, ...]
    facts: dict[str, str] = field(default_factory=dict)
    lead: Lead | None = None


def duration(seconds: float | None) -> str:
    """Three digits in the unit that suits.

    >>> duration(1.234e-6), duration(0.0561), duration(72.0)
    ('1.23 µs', '56.1 ms', '72 s')
    """
    if seconds is None:
        return "–"
    for factor, unit in ((1e6, "µs"), (1e3, "ms")):
        if seconds * factor < 999.5:
            return f"{digits(seconds * factor)} {unit}"
    return f"{digits(seconds)} s"


def ratio(value: float | None) -> str:
    """
    >>> ratio(2.345), ratio(None)
    ('2.35x', '–')
    """
    return "–" if value is None else f"{digits(value)}x"


def number(value: float | None) -> str:
    return "–" if value is None else digits(value)


def digits(value: float) -> str:
    """Three significant digits, in exponents below 1e-4 alone.

    >>> digits(1.2), digits(12.345), digits(1234.5), digits(0.0123), digits(0.0), digits(1.234e-5)
    ('1.2', '12.3', '1234', '0.0123', '0', '1.23e-05')
    """
    if value == 0:
        return "0"
    if abs(value) >= 999.5:
        return f"{value:.0f}"
    return f"{value:.3g}" if abs(value) >= 1e-4 else f"{value:.2e}"
