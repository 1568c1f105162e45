"""Deadlines of the phases of training, after which a process counts as stuck."""

import statistics
from collections.abc import Mapping
from dataclasses import dataclass

from exajax.errors import InputError, nearest

SILENT = "silent"
"""Name of the deadline for the heartbeat of a training process."""

DEFAULTS_S: Mapping[str, float] = {  # `exajax.job.events.PHASES`, and `silent`
    "start": 600.0,  # joining the job, and opening the data
    "compile": 3600.0,
    "restore": 1800.0,
    "step": 600.0,  # until `TIMED` steps were timed; the first one also sets up communication
    "evaluate": 1800.0,
    "callback": 1800.0,
    "audit": 1800.0,
    "checkpoint": 1800.0,
    "end": 1800.0,  # waiting for the last checkpoint
    SILENT: 30.0,  # no heartbeat: the process or its machine is stopped
}

TIMED = 10
"""Steps that are timed before a step's deadline follows from their median."""

STEPS, FLOOR_S = 20.0, 30.0
"""From then on the deadline of a step is `STEPS` medians, and at least `FLOOR_S` seconds."""


@dataclass(frozen=True)
class Deadlines:
    """Deadlines of a job in seconds: those that were set, and defaults for the other phases.

    Attributes:
        given: the deadlines that were set, by phase or `silent`.
    """

    given: Mapping[str, float]

    @classmethod
    def parse(cls, text: str) -> "Deadlines":
        """Reads `step=20,compile=600`.

        Raises:
            InputError: a phase is unknown, or its time is not a positive number.
        """
        given = {}
        for part in filter(None, text.split(",")):
            phase, _, seconds = (piece.strip() for piece in part.partition("="))
            if phase not in DEFAULTS_S:
                raise InputError(
                    "deadlines", f"unknown phase {phase!r}", nearest(phase, DEFAULTS_S)
                )
            if phase in given:
                raise InputError("deadlines", f"{phase} is given twice", "give it once")
            try:
                given[phase] = float(seconds)
            except ValueError:
                given[phase] = -1.0
            if not 0 < given[phase] < float("inf"):
                raise InputError(
                    "deadlines",
                    f"the time of {phase} is {seconds!r}",
                    "give seconds, as in step=60,compile=1800",
                )
        return cls(given)

    def __str__(self) -> str:
        return ",".join(f"{phase}={seconds}" for phase, seconds in self.given.items())

    def of(self, phase: str, step_times_s: list[float]) -> float:
        """The deadline of a phase, seconds.

        Args:
            phase: of `exajax.job.events.PHASES`, or `silent`.
            step_times_s: durations of the last steps.
        """
        if phase in self.given:
            return self.given[phase]
        if phase == "step" and len(step_times_s) >= TIMED:
            return max(FLOOR_S, STEPS * statistics.median(step_times_s))
        return DEFAULTS_S[phase]
