"""A document as plain text, for where rich is not installed."""

from __future__ import annotations

from collections.abc import Iterator

from .document import Document, Table


def text(document: Document) -> str:
    """Title, facts, sections, and last what was found.

    >>> print(text(Document("Title", ("Found.",), (), {"CPU": "one"})))
    Title
      CPU: one
    <BLANKLINE>
    Found.
    """
    return "\n".join(lines(document))


def lines(document: Document) -> Iterator[str]:
    yield document.title
    yield from (f"  {name}: {value}" for name, value in document.facts.items())
    for section in document.sections:
        yield ""
        yield f"{section.title}  [{section.badge}]" if section.badge else section.title
        yield from (line for line in (section.quote, *section.text, section.formula) if line)
        for table in section.tables:
            yield from grid(table)
            yield from (f"  {note}" for note in table.notes)
    yield ""
    yield from document.summary
    if document.lead:
        yield document.lead.title
        yield from (f"  {reason}" for reason in document.lead.reasons)


def grid(table: Table) -> Iterator[str]:
    """Columns of their own width, words to the left and numbers to the right."""
    rows = (table.columns, *table.rows)
    widths = [max(len(row[index]) for row in rows) for index in range(len(table.columns))]
    for row in rows:
        cells = (
            cell.ljust(width) if index < table.labels else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        yield "  ".join(cells).rstrip()
