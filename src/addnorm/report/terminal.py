"""A document on the terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table as Grid

from .document import Document, Table

SHORT = 12  # characters that never wrap


class Terminal(Console):
    """A console that tells its caller when the reader has gone, where rich would end the program as failed."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


def show(document: Document, console: Console | None = None) -> None:
    """Prints title, sections, facts, and last what was found, where the eye is."""
    console = console or Terminal()
    if console.width < 1:  # COLUMNS=0
        console.width = 80
    console.print(f"[bold]{escape(document.title)}[/bold]")
    for name, value in document.facts.items():
        console.print(f"  [dim]{escape(name)}[/dim] {escape(value)}", highlight=False)
    for section in document.sections:
        if not (section.text or section.tables or section.quote or section.formula):
            continue  # figures alone, which a terminal has no place for
        badge = f"  [reverse] {escape(section.badge)} [/reverse]" if section.badge else ""
        console.print(f"\n[bold]{escape(section.title)}[/bold]{badge}")
        if section.quote:
            console.print(f"[italic]{escape(section.quote)}[/italic]", highlight=False)
        for text in section.text:
            console.print(escape(text), highlight=False)
        if section.formula:
            console.print(f"[bold]{escape(section.formula)}[/bold]", highlight=False)
        for table in section.tables:
            console.print(grid(table))
            for note in table.notes:
                console.print(f"  [dim]{escape(note)}[/dim]", highlight=False)
    console.print()
    for line in document.summary:
        console.print(escape(line), highlight=False)
    if document.lead:
        console.print(f"[bold]{escape(document.lead.title)}[/bold]", highlight=False)
        for reason in document.lead.reasons:
            console.print(f"  {escape(reason)}", highlight=False)


def grid(table: Table) -> Grid:
    made = Grid(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, collapse_padding=True)
    for index, name in enumerate(table.columns):
        longest = max((len(cells[index]) for cells in table.rows), default=0)
        # Headings may wrap, and long words; numbers never.
        width = longest if index >= table.labels or longest <= SHORT else None
        justify = "left" if index < table.labels else "right"
        made.add_column(escape(name), justify=justify, min_width=width, overflow="fold")
    for cells in table.rows:
        made.add_row(*(escape(cell) for cell in cells))
    return made


@contextmanager
def progress_bar() -> Iterator[Callable[[str, int, int], None]]:
    """A bar on stderr that leaves nothing behind, fed with ``(label, done, total)``."""
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=None)

        def show_progress(label: str, done: int, total: int) -> None:
            progress.update(task, description=escape(label), completed=done, total=total)

        yield show_progress
