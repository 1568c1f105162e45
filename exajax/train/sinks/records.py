"""Loggers of a run's metrics, and the JSON-lines files of its history."""

import contextlib
import logging
import statistics
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol, runtime_checkable

import numpy as np

from exajax.job.runtime import json_text
from exajax.train.sinks import history

LOGGER = logging.getLogger(__name__)


class Logger(Protocol):
    """A destination of metrics, to which training passes plain numbers."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Logs values of a step: any of those that `fit` lists."""

    def close(self) -> None:
        """Writes pending values."""


@runtime_checkable
class History(Logger, Protocol):
    """A logger whose history follows the state: a roll-back of the run rolls it back as well."""

    def rewind(self, step: int) -> None:
        """Drops the records of steps after this one, from which the run continues."""


class JsonLines:
    """A file such as `metrics.jsonl`: one JSON object a line, each with its step.

    Records behind the step that a run goes on from are cut off, so that the file is always the
    history of the state.

    Args:
        path: the file.
        resumed_from: step that the run goes on from.
        facts: of every step from here on, part of every record: `program`, what computes it (where
            a run goes on on another mesh, its times are no longer of the same step), and
            `schedule_steps`, what its learning rate's schedule is laid over.
    """

    def __init__(
        self, path: Path, resumed_from: int, facts: Mapping[str, Any] = MappingProxyType({})
    ) -> None:
        self._facts = facts
        self._path = path
        self._open(resumed_from)

    def _open(self, resumed_from: int) -> None:
        kept = history.cut(self._path, resumed_from)
        if resumed_from and not kept:
            LOGGER.warning(
                "%s has no record of step %d, from which the run goes on: its history has a gap",
                self._path,
                resumed_from,
            )
        self._file = self._path.open("a", buffering=1)
        self._validated = {r["step"] for r in kept if "validation_loss" in r}

    def rewind(self, step: int) -> None:
        """Drops the records of later steps."""
        self._file.close()
        self._open(step)

    def log(self, step: int, values: Mapping[str, Any]) -> None:
        """Appends a record; a step that was validated before a resume is not recorded twice."""
        if "validation_loss" in values and step in self._validated:
            return
        with contextlib.suppress(OSError):  # training goes on while the disk is full
            self._file.write(json_text({"step": step, **values, **self._facts}) + "\n")

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


class SampleLog:
    """`samples.jsonl`: the samples that every step trained on.

    Args:
        path: the file.
        resumed_from: step that the run goes on from; what was written of later steps is dropped.
        ids: the samples of a step, counted from 0.
    """

    def __init__(self, path: Path, resumed_from: int, ids: Callable[[int], np.ndarray]) -> None:
        self._lines, self._ids = JsonLines(path, resumed_from), ids

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Writes down the samples of a step that has trained; records count steps from 1."""
        if "loss" in values:
            self._lines.log(step, {"ids": self._ids(step - 1).tolist()})

    def rewind(self, step: int) -> None:
        """Drops the samples of later steps."""
        self._lines.rewind(step)

    def close(self) -> None:
        """Closes the file."""
        self._lines.close()


def percentiles(seconds: Iterable[float]) -> dict[str, float | None]:
    """Returns `p50` and `p95`, None where nothing was measured."""
    values = sorted(seconds)
    if not values:
        return {"p50": None, "p95": None}
    return {"p50": statistics.median(values), "p95": values[int(0.95 * (len(values) - 1) + 0.5)]}
