"""Plain data as JSON has it."""

from __future__ import annotations

import math
from typing import Any


def finite(data: Any) -> Any:
    """The same in dicts and lists, with None for NaN and infinity, which JSON does not have.

    >>> finite({"a": (1.5, float("nan")), "b": float("inf")})
    {'a': [1.5, None], 'b': None}
    """
    if isinstance(data, dict):
        return {key: finite(value) for key, value in data.items()}
    if isinstance(data, (list, tuple)):
        return [finite(value) for value in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data
