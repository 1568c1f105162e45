"""A training under faults, restarted when its command ends early, as a batch system does it."""

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from exajax.chaos import processes
from exajax.chaos.faults import Fault
from exajax.chaos.injections import JobUnderTest
from exajax.chaos.injector import Injector
from exajax.chaos.self_inflicted import FIRED
from exajax.job.environment import CHAOS, FAULTS, LIFELINE
from exajax.job.events import EventLog, read_events
from exajax.resilience.control import Control
from exajax.resilience.job import Job

LOGGER = logging.getLogger(__name__)

ROUND_S = 0.02

LOG_EVERY_S = 10.0

HUNG_S = 900.0
"""Seconds without an event after which a job counts as hung."""

LEAVE_S = 10.0
"""Seconds that processes have to end after their job is over."""


@dataclass(frozen=True)
class DisturbedRun:
    """How a training under faults ended.

    Attributes:
        code: exit code of the last start, 0 if the training is done.
        starts: number of times that the command was given.
        wall_s: seconds that it took.
        began_s: when it began, in seconds since 1970.
        not_injected: numbers of the faults that were never injected.
        orphans: processes that still ran after the end, in words.
    """

    code: int
    starts: int
    wall_s: float
    began_s: float
    not_injected: tuple[int, ...]
    orphans: tuple[str, ...]


def train_undisturbed(job: Job, log: Path, mark: str) -> int:
    """Trains without faults; returns the exit code.

    Args:
        job: what to train.
        log: takes standard output and error; the job file lies next to it.
        mark: for the environment of all processes of the job.
    """
    with _start(job, log, {CHAOS.name: mark}) as process:
        try:
            return process.wait()
        finally:
            _kill_all(mark)


def train_under_faults(
    faults: Sequence[Fault], job: Job, target: JobUnderTest, schedule: Path
) -> DisturbedRun:
    """Trains while faults are injected, until the training is done or fails by itself.

    Args:
        faults: the schedule.
        job: what to train.
        target: the processes and folders of that job.
        schedule: the file of the schedule, which the training processes read. The injector's events
            go to its folder, since the run folder is removed if the job ends before it trains.
    """
    (schedule.parent / FIRED).mkdir()
    env = {CHAOS.name: target.mark, FAULTS.name: str(schedule.absolute())}
    env |= target.network.environment if target.network else {}
    began_s = time.time()
    os.utime(schedule, (began_s, began_s))  # the start of the run for the training processes
    events = EventLog(schedule.parent, 0, "chaos")
    injector = Injector(faults, target, events)
    code, starts, injected = 1, 0, 0
    try:
        while True:
            starts += 1
            with _start(job, schedule.with_name("disturbed.log"), env) as process:
                code = _watch(process, injector, target.run_dir)
            events.write("left", code=code)
            before, injected = injected, len(faults) - len(injector.pending)
            if code == 0 or injected == before:  # it ended without a new fault
                break
            LOGGER.info("the command ended with %d, and is given again", code)
        injector.lift_all()
        wall_s = time.time() - began_s
        orphans = _orphans(target.mark)
    finally:
        injector.lift_all()
        _kill_all(target.mark)
        events.close()
    left = tuple(fault.id for fault in injector.pending)
    return DisturbedRun(code, starts, wall_s, began_s, left, orphans)


def _start(job: Job, log: Path, env: Mapping[str, str]) -> "subprocess.Popen[bytes]":
    path = job.write(log.with_suffix(".json"))
    with log.open("a") as file:
        return subprocess.Popen(
            [sys.executable, "-m", "exajax", "job", str(path)],
            env={**os.environ, **env, LIFELINE.name: "1"},
            stdin=subprocess.PIPE,  # never written: its end is the end of the job
            stdout=file,
            stderr=file,
            start_new_session=True,
        )


def _watch(process: "subprocess.Popen[bytes]", injector: Injector, run_dir: Path) -> int:
    """Injects faults until the parent process of a job has ended; returns its exit code."""
    logged_s = time.monotonic()
    while process.poll() is None:
        injector.round()
        if time.monotonic() - logged_s > LOG_EVERY_S:
            logged_s = time.monotonic()
            LOGGER.info("step %d, %d faults to come", injector.furthest, len(injector.pending))
            if _has_been_over(run_dir) or _hangs(run_dir):
                process.kill()
        time.sleep(ROUND_S)
    code = process.returncode
    return 128 - code if code < 0 else code


def _has_been_over(run_dir: Path) -> bool:
    """Whether a job was over long enough ago for its parent process to have ended."""
    path = Control(run_dir).folder / "attempt.json"
    attempt = Control(run_dir).attempt()
    if attempt is None or attempt.state != "over" or not path.exists():
        return False
    return time.time() - path.stat().st_mtime > LEAVE_S + LOG_EVERY_S


def _hangs(run_dir: Path) -> bool:
    events = read_events(run_dir)
    return bool(events) and time.time() - events[-1]["time"] > HUNG_S


def _orphans(mark: str) -> tuple[str, ...]:
    """The processes that still run after they had time to end, in words."""
    until_s = time.monotonic() + LEAVE_S
    while (left := processes.marked_processes(mark)) and time.monotonic() < until_s:
        time.sleep(0.1)
    return tuple(f"{process.role} of host {process.host}, pid {process.pid}" for process in left)


def _kill_all(mark: str) -> None:
    """Kills all processes that carry a mark; Ctrl-C has to wait for it."""
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        processes.kill_all(mark, time.sleep)
    finally:
        signal.signal(signal.SIGINT, handler)
