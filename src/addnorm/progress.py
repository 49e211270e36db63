"""How far a long piece of work is, for who wants to show it."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str, int, int], None]  # of what is under way, steps done, steps in all


def silent(label: str, done: int, total: int) -> None:
    """No progress."""
