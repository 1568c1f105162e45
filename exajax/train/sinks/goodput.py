"""The goodput of a running job as metrics."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from exajax.job.events import read_events
from exajax.job.goodput import CAUSES, Accountant
from exajax.train.sinks.records import Logger

EVERY_S = 10.0
"""Seconds between two reports, at least."""


class LiveGoodput:
    """Follows the phases of this process, and passes `goodput` and `lost_CAUSE_s` to loggers.

    Args:
        run_dir: the run folder; what happened before is read from its events.
        host: number of this process's host.
        attempt: number of the attempt at the run that this process belongs to.
    """

    def __init__(self, run_dir: Path, host: int, attempt: int) -> None:
        self._about = {"role": "worker", "host": host, "attempt": attempt}
        self._accountant = Accountant()
        for event in read_events(run_dir):
            self._accountant.add(event)
        self.sinks: Sequence[Logger] = ()
        self._step, self._reported_s = 0, 0.0

    def progress(self, phase: str, step: int) -> None:
        """Takes note that training turns to a phase."""
        event = {"time": time.time(), "event": "phase", "phase": phase, "step": step}
        self._accountant.add(self._about | event)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Reports, if it is time."""
        self._step = step
        if time.monotonic() - self._reported_s >= EVERY_S:
            self._report()

    def close(self) -> None:
        """Reports what the run ends with."""
        self._report()

    def _report(self) -> None:
        self._reported_s = time.monotonic()
        goodput = self._accountant.goodput()
        if goodput.ratio is None:
            return
        lost = {f"lost_{cause}_s": goodput.lost_s[cause] for cause in CAUSES}
        for sink in self.sinks:
            sink.log(self._step, {"goodput": goodput.ratio} | lost)
