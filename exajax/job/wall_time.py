"""When the allocation of this job ends, and when it is time to save for that."""

import datetime
import itertools
import os
import re
import shutil
import statistics
import subprocess
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from exajax.errors import InputError
from exajax.files.reading import shown
from exajax.job.environment import WALL_TIME_ENDS
from exajax.job.events import read_events

SAVE_BEFORE_END_S = 120.0
"""By default: room for a last checkpoint, and for processes to end. At most a quarter of what is
left when a job starts, or a short allocation would be over before it has begun."""

MEASURE_EVERY_S = 15.0


_BELOW_60 = r"[0-5]?\d"
_BELOW_24 = r"[01]?\d|2[0-3]"
_FRACTION = r"(?:\.\d{1,9})?"
TIME = re.compile(
    rf"(?P<seconds>\d{{1,9}}{_FRACTION})"
    rf"|(?:(?P<hours>\d{{1,9}}):(?P<min>{_BELOW_60})|(?P<minutes>\d{{1,9}}))"
    rf":(?P<sec>{_BELOW_60}{_FRACTION})"
    rf"|(?P<days>\d{{1,5}})-(?P<hour>{_BELOW_24})"
    rf"(?::(?P<minute>{_BELOW_60})(?::(?P<second>{_BELOW_60}{_FRACTION}))?)?",
    re.ASCII,
)
"""A length of time as batch systems write it. Behind a larger unit, none may reach the next."""

UNITS_S = {
    1.0: ("seconds", "sec", "second"),
    60.0: ("minutes", "min", "minute"),
    3600.0: ("hours", "hour"),
    86400.0: ("days",),
}
"""Seconds of the units that `TIME` names."""


def parse(text: str) -> float:
    """Returns the seconds of `HH:MM:SS`, `MM:SS`, `D-HH:MM:SS`, `D-HH:MM`, `D-HH` or plain seconds.

    These are the forms of PBS (pbs_resources(7B)) and of Slurm (sbatch(1), --time), but that a
    plain number is seconds, as to PBS, where Slurm takes it for minutes.

    Raises:
        InputError: it is none of them, or not positive.
    """
    if found := TIME.fullmatch(text):
        units = ((unit_s, found[name]) for unit_s, names in UNITS_S.items() for name in names)
        seconds = sum(unit_s * float(value) for unit_s, value in units if value)
        if seconds > 0:
            return seconds
    raise InputError(
        "wall_time", f"{shown(text)} is not a time", "give HH:MM:SS, D-HH:MM:SS or seconds"
    )


def announce(given: str | None, save_before_end_s: float | None) -> None:
    """Fixes when `wall_time` ends, for this process and those it starts.

    Raises:
        InputError: it is not a time, or would be over before it begins.
    """
    if save_before_end_s is not None and not 0 < save_before_end_s < float("inf"):
        raise InputError(
            "save_before_end", f"it is {save_before_end_s}", "give a positive number of seconds"
        )
    if given is None:
        return
    seconds = parse(given)
    if save_before_end_s is not None and seconds <= save_before_end_s:
        raise InputError(
            "wall_time",
            f"{given} is over before the {save_before_end_s:g} s of `save_before_end` begin",
            "give more time, or save later",
        )
    os.environ.setdefault(WALL_TIME_ENDS.name, str(time.time() + seconds))


def ends(env: Mapping[str, str] = os.environ) -> tuple[float, str] | None:
    """Returns when this job's allocation ends, in seconds since 1970, and who says so.

    It is what `wall_time` said, or Slurm in `SLURM_JOB_END_TIME` (sbatch(1), output environment
    variables), or PBS: when the job started and how long it may take, as `qstat -f` shows them.
    """
    if (given := WALL_TIME_ENDS.get(env)) is not None:
        return given, "the job's own limit"
    if re.fullmatch(r"\d+(\.\d+)?", env.get("SLURM_JOB_END_TIME", "")):
        return float(env["SLURM_JOB_END_TIME"]), "Slurm"
    if "PBS_JOBID" in env and (qstat := shutil.which("qstat", path=env.get("PATH"))):
        try:
            asked = subprocess.run(
                [qstat, "-f", env["PBS_JOBID"]], capture_output=True, text=True, timeout=5
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        found = _of_pbs(asked.stdout)
        return (found, "PBS") if found else None
    return None


def _of_pbs(shown: str) -> float | None:
    """Returns the end of a job from what `qstat -f` shows; its times are of the local zone."""
    values = dict(re.findall(r"^\s+([\w.]+) = (.*)$", shown, re.MULTILINE))
    try:
        began = datetime.datetime.strptime(values["stime"].strip(), "%a %b %d %H:%M:%S %Y")
        return began.timestamp() + parse(values["Resource_List.walltime"].strip())
    except (KeyError, ValueError, InputError):
        return None


def needed_s(events: Iterable[Mapping[str, Any]]) -> float:
    """Returns how long it takes to come to the end of a step and to save, as measured in a run.

    That is twice the slowest of the last ten checkpoints, and five typical steps.
    """
    seen = list(events)
    saves = [event["seconds"] for event in seen if event["event"] == "checkpoint-saved"]
    phases = [event for event in seen if event["event"] == "phase"]
    steps = [
        after["time"] - before["time"]
        for before, after in itertools.pairwise(phases)
        if before["phase"] == after["phase"] == "step" and before["host"] == after["host"]
    ]
    step_s = statistics.median(steps[-100:]) if steps else 0.0
    return 2 * max(saves[-10:], default=0.0) + 5 * step_s


class WallTime:
    """Says when it is time to save, because the allocation ends.

    Args:
        run_dir: the run folder; its events say how long saving takes.
        save_before_end_s: how long before the end at the latest; None is the default.
    """

    def __init__(self, run_dir: Path, save_before_end_s: float | None) -> None:
        self._run_dir, self._least_s = run_dir, save_before_end_s
        self._end: tuple[float, str] | None = None
        self._margin_s = 0.0
        self._measured_s: float | None = None

    def due(self) -> str | None:
        """Returns why it is time to save, None as long as it is not."""
        if self._measured_s is None:  # who never leads a job never asks the batch system
            self._end = ends()
            self._measure()
        if self._end is None:
            return None
        left_s = self._end[0] - time.time()
        if left_s < 10 * self._margin_s and time.time() - (self._measured_s or 0) > MEASURE_EVERY_S:
            self._measure()
        if left_s > self._margin_s:
            return None
        return f"the wall time ({self._end[1]}) ends in {max(left_s, 0.0):.0f} s"

    def _measure(self) -> None:
        self._measured_s = time.time()
        if self._end is None:
            return
        if self._least_s is None:
            self._least_s = min(SAVE_BEFORE_END_S, (self._end[0] - time.time()) / 4)
        self._margin_s = max(self._least_s, needed_s(read_events(self._run_dir)))
