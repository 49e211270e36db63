"""Numbers in sentences."""

from __future__ import annotations


def count(number: int, what: str) -> str:
    """A number of things.

    >>> count(1, "site"), count(2, "site"), count(0, "batch")
    ('1 site', '2 sites', '0 batches')
    """
    ending = "" if number == 1 else "es" if what.endswith("ch") else "s"
    return f"{number} {what}{ending}"
