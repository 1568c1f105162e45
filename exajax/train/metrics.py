"""What a run says of itself: records by step, and where they go."""

import json
import statistics
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol


class Logger(Protocol):
    """Somewhere that metrics go. Training hands over plain numbers and knows nothing more."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Takes the values of a step: any of those that `fit` lists."""

    def close(self) -> None:
        """Writes out what is pending."""


class JsonLines:
    """`metrics.jsonl`: one JSON object a line, each with its step.

    Records behind the step that a run goes on from are dropped, so that the file is always the
    history of the state.
    """

    def __init__(self, path: Path, resumed_from: int) -> None:
        kept = [record for record in read_jsonl(path) if record["step"] <= resumed_from]
        self._file = path.open("w", buffering=1)
        for record in kept:
            self._write(record)

    def _write(self, record: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(record) + "\n")

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Appends a record."""
        self._write({"step": step, **values})

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Returns the records of a metrics file; a last line cut short by a crash is left out."""
    records = []
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return records


def percentiles(seconds: Iterable[float]) -> dict[str, float | None]:
    """Returns `p50` and `p95`, None where nothing was measured."""
    values = sorted(seconds)
    if not values:
        return {"p50": None, "p95": None}
    return {"p50": statistics.median(values), "p95": values[int(0.95 * (len(values) - 1) + 0.5)]}
