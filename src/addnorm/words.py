"""Numbers, errors and headings in sentences."""

from __future__ import annotations


def count(number: int, what: str) -> str:
    """A number of things.

    >>> count(1, "site"), count(2, "site"), count(0, "batch")
    ('1 site', '2 sites', '0 batches')
    """
    ending = "" if number == 1 else "es" if what.endswith("ch") else "s"
    return f"{number} {what}{ending}"


def capitalised(text: str) -> str:
    """With a capital letter at its beginning, the others as they are.

    >>> capitalised("forward, RMSNorm")
    'Forward, RMSNorm'
    """
    return text[:1].upper() + text[1:]


def first_line(error: Exception) -> str:
    """The first line of an error's text.

    >>> first_line(ValueError("no\\nmore")), first_line(ValueError())
    ('no', 'no message')
    """
    return (str(error).strip() or "no message").splitlines()[0]
