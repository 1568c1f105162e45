"""The end of this job's allocation, and when to save a last checkpoint before it."""

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
"""Default seconds for a last checkpoint and for the processes to end; at most a quarter of the
allocation's time at the start of a job, so that a short one trains at all."""

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
"""A length of time as batch systems write it; below the largest unit, minutes and seconds are < 60
and hours < 24."""

UNITS_S = {
    1.0: ("seconds", "sec", "second"),
    60.0: ("minutes", "min", "minute"),
    3600.0: ("hours", "hour"),
    86400.0: ("days",),
}
"""Seconds of a unit, and the groups of `TIME` that hold it."""


def parse_wall_time(text: str) -> float:
    """Seconds of `HH:MM:SS`, `MM:SS`, `D-HH:MM:SS`, `D-HH:MM`, `D-HH` or plain seconds.

    These are the forms of PBS (pbs_resources(7B)) and of Slurm (sbatch(1), --time). A plain number
    is seconds, as in PBS; Slurm would read minutes.

    Raises:
        InputError: the text has another form, or is not positive.
    """
    if match := TIME.fullmatch(text):
        units = ((unit_s, match[name]) for unit_s, names in UNITS_S.items() for name in names)
        seconds = sum(unit_s * float(value) for unit_s, value in units if value)
        if seconds > 0:
            return seconds
    raise InputError(
        "wall_time", f"{shown(text)} is not a time", "give HH:MM:SS, D-HH:MM:SS or seconds"
    )


def set_end(wall_time: str | None, save_before_end_s: float | None) -> None:
    """Sets the end of the option `wall_time`, counted from now, for this process and its children.

    Raises:
        InputError: it is not a time, or not longer than `save_before_end`.
    """
    if save_before_end_s is not None and not 0 < save_before_end_s < float("inf"):
        raise InputError(
            "save_before_end", f"it is {save_before_end_s}", "give a positive number of seconds"
        )
    if wall_time is None:
        return
    seconds = parse_wall_time(wall_time)
    if save_before_end_s is not None and seconds <= save_before_end_s:
        raise InputError(
            "wall_time",
            f"{wall_time} is over before the {save_before_end_s:g} s of `save_before_end` begin",
            "give more time, or save later",
        )
    os.environ.setdefault(WALL_TIME_ENDS.name, str(time.time() + seconds))


def allocation_end(env: Mapping[str, str] = os.environ) -> tuple[float, str] | None:
    """The end of this job's allocation in seconds since 1970, and its source; None if unknown.

    Sources in this order: the option `wall_time`; Slurm's `SLURM_JOB_END_TIME` (sbatch(1), output
    environment variables); PBS, by the start and wall time that `qstat -f` prints.
    """
    if (own_limit := WALL_TIME_ENDS.get(env)) is not None:
        return own_limit, "the job's own limit"
    if re.fullmatch(r"\d+(\.\d+)?", env.get("SLURM_JOB_END_TIME", "")):
        return float(env["SLURM_JOB_END_TIME"]), "Slurm"
    if "PBS_JOBID" in env and (qstat := shutil.which("qstat", path=env.get("PATH"))):
        try:
            status = subprocess.run(
                [qstat, "-f", env["PBS_JOBID"]], capture_output=True, text=True, timeout=5
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        end_s = _pbs_end(status.stdout)
        return (end_s, "PBS") if end_s else None
    return None


def _pbs_end(qstat_output: str) -> float | None:
    """The end of a job in seconds since 1970, from `qstat -f`, which prints local time."""
    values = dict(re.findall(r"^\s+([\w.]+) = (.*)$", qstat_output, re.MULTILINE))
    try:
        start = datetime.datetime.strptime(values["stime"].strip(), "%a %b %d %H:%M:%S %Y")
        return start.timestamp() + parse_wall_time(values["Resource_List.walltime"].strip())
    except (KeyError, ValueError, InputError):
        return None


def save_time_s(events: Iterable[Mapping[str, Any]]) -> float:
    """Seconds to finish a step and save, from a run's events.

    Twice the slowest of the last ten checkpoints, plus five median steps.
    """
    history = list(events)
    saves = [event["seconds"] for event in history if event["event"] == "checkpoint-saved"]
    phases = [event for event in history if event["event"] == "phase"]
    steps = [
        after["time"] - before["time"]
        for before, after in itertools.pairwise(phases)
        if before["phase"] == after["phase"] == "step" and before["host"] == after["host"]
    ]
    step_s = statistics.median(steps[-100:]) if steps else 0.0
    return 2 * max(saves[-10:], default=0.0) + 5 * step_s


class WallTime:
    """The deadline of a job: when it has to save because its allocation ends.

    Args:
        run_dir: the run folder, whose events tell how long saving takes.
        save_before_end_s: least time before the end; None is the default.
    """

    def __init__(self, run_dir: Path, save_before_end_s: float | None) -> None:
        self._run_dir, self._least_margin_s = run_dir, save_before_end_s
        self._end: tuple[float, str] | None = None
        self._margin_s = 0.0
        self._measured_s: float | None = None

    def due(self) -> str | None:
        """The reason to save now, None while there is time left."""
        if self._measured_s is None:  # only the leader calls this, and asks the batch system
            self._end = allocation_end()
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
        if self._least_margin_s is None:
            self._least_margin_s = min(SAVE_BEFORE_END_S, (self._end[0] - time.time()) / 4)
        self._margin_s = max(self._least_margin_s, save_time_s(read_events(self._run_dir)))
