"""Helpers that turn data into Markdown; `repo:` begins a path from the top of the repository."""

import json
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
DATA = ROOT / "benchmarks" / "data"

Rows = Iterable[Sequence[object]]


def data(name: str) -> Any:
    """The JSON value of a file in `benchmarks/data`."""
    return json.loads((DATA / name).read_text())


def link(name: str) -> str:
    """Returns a link to a file in `benchmarks/data`."""
    return f"[`{name}`](repo:benchmarks/data/{name})"


def percent(share: float | None, digits: int = 1) -> str:
    """Returns a share as a percentage, nothing for None."""
    return "" if share is None else f"{100 * share:.{digits}f}%"


def table(columns: Sequence[str], rows: Rows, about: str) -> str:
    """Returns a table, and below it what its figures are and where they are from."""
    lines = [columns, ["---"] * len(columns), *rows]
    text = "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)
    return f"{text}\n\n{about}"


def worst(errors: Iterable[float]) -> float:
    """Returns the largest absolute error."""
    return max(abs(error) for error in errors)


def mean(errors: Iterable[float]) -> float:
    """Returns the mean absolute error."""
    return statistics.fmean(abs(error) for error in errors)
