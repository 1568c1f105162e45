"""Columns of a published row, read one by one; an empty one is unknown."""

import math
from collections.abc import Mapping

Columns = Mapping[str, str]
"""A row of a table: text by column."""


class InexpressibleError(Exception):
    """A row says too little, or something that a recipe does not have."""


def number(values: Columns, column: str) -> float | None:
    """Returns a number above 0, None where nothing like it stands there."""
    try:
        found = float(values.get(column) or "nan")
    except ValueError:
        return None
    return found if math.isfinite(found) and found > 0 else None


def count(values: Columns, column: str, default: int | None = None) -> int:
    """Returns a whole number; raises `InexpressibleError` if there is none and no default."""
    found = number(values, column)
    if found is None and default is not None:
        return default
    if found is None or found != int(found):
        raise InexpressibleError(f"its {column} is {values.get(column) or 'unknown'}")
    return int(found)
