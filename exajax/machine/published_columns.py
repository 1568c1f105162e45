"""Reading numbers from the columns of a published table; an empty cell is an unknown value."""

import math
from collections.abc import Mapping

Columns = Mapping[str, str]
"""A row of a table: cell text by column name."""


class InexpressibleError(Exception):
    """A published row that cannot be a recipe: it lacks something, or uses what recipes lack."""


def positive_number(columns: Columns, column: str) -> float | None:
    """The positive finite number in a column; None if the cell holds anything else."""
    try:
        value = float(columns.get(column) or "nan")
    except ValueError:
        return None
    return value if math.isfinite(value) and value > 0 else None


def positive_integer(columns: Columns, column: str, default: int | None = None) -> int:
    """The positive integer in a column.

    Args:
        columns: the row.
        column: name of the column.
        default: value where the cell holds no positive number; None if there is none.

    Raises:
        InexpressibleError: the number is not an integer, or is missing without a default.
    """
    value = positive_number(columns, column)
    if value is None and default is not None:
        return default
    if value is None or value != int(value):
        raise InexpressibleError(f"its {column} is {columns.get(column) or 'unknown'}")
    return int(value)
