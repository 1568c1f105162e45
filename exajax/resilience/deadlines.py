"""How long a training process may stay at one thing before it is taken for stuck."""

import statistics
from collections.abc import Mapping
from dataclasses import dataclass

from exajax.errors import InputError, nearest

SILENT = "silent"

DEFAULTS_S: Mapping[str, float] = {  # `exajax.train.loop.PHASES`, and `silent`
    "start": 600.0,  # joining, and reading the data
    "compile": 3600.0,
    "restore": 1800.0,
    "step": 600.0,  # until enough steps were timed; the first one also sets up communication
    "evaluate": 1800.0,
    "callback": 1800.0,
    "audit": 1800.0,
    "checkpoint": 1800.0,
    "end": 1800.0,  # waiting for the last checkpoint
    SILENT: 30.0,  # a process that does not even say where it is: stopped, or its machine is
}

TIMED = 10
"""Steps that are timed before their median says how long one may take."""

STEPS, FLOOR_S = 20.0, 30.0
"""From then on a step may take so many medians, and this long in any case."""


@dataclass(frozen=True)
class Deadlines:
    """Seconds by phase, and for `silent`.

    Attributes:
        given: those that were chosen; they are kept to the letter.
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
        """Returns how long a phase may take.

        Args:
            phase: of `exajax.train.loop.PHASES`, or `silent`.
            step_times_s: of the last steps.
        """
        if phase in self.given:
            return self.given[phase]
        if phase == "step" and len(step_times_s) >= TIMED:
            return max(FLOOR_S, STEPS * statistics.median(step_times_s))
        return DEFAULTS_S[phase]
