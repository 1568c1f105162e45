"""A training under injection, started again whenever it ends too soon, as a batch system would."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from exajax.chaos import processes
from exajax.chaos.faults import Fault
from exajax.chaos.injector import Injector
from exajax.chaos.inside import FIRED
from exajax.chaos.strikes import Scene
from exajax.job.environment import CHAOS, FAULTS, LIFELINE
from exajax.job.events import EventLog, read_events
from exajax.resilience.control import Control
from exajax.resilience.job import Job

ROUND_S = 0.02

TOLD_EVERY_S = 10.0

SILENT_S = 900.0
"""A job that has told no event for so long will tell none any more."""

LEAVE_S = 10.0
"""Time that processes have to end behind a job that is over."""


@dataclass(frozen=True)
class Ended:
    """How a training under injection ended.

    Attributes:
        code: of the last parent, 0 if the training is done.
        starts: how often the command was given.
        wall_s: seconds that it took.
        began_s: when it began, in seconds since 1970.
        not_injected: numbers of the faults that did not come to pass.
        orphans: what was still running when everything should have ended.
    """

    code: int
    starts: int
    wall_s: float
    began_s: float
    not_injected: tuple[int, ...]
    orphans: tuple[str, ...]


def train(job: Job, log: Path, mark: str) -> int:
    """Trains undisturbed; returns the exit code.

    Args:
        job: what to train.
        log: file that takes what is printed; the job is written beside it.
        mark: for the environment of all its processes.
    """
    with _start(job, log, {CHAOS.name: mark}) as process:
        try:
            return process.wait()
        finally:
            _end(mark)


def train_under(
    faults: Sequence[Fault],
    job: Job,
    scene: Scene,
    schedule: Path,
    tell: Callable[[str], None],
) -> Ended:
    """Trains while faults strike, until it is done.

    Args:
        faults: what strikes.
        job: what to train.
        scene: where; the run folder is the job's.
        schedule: the file with the faults, which the training processes read. What was injected is
            told in events beside it: those of a run that has not trained yet may be removed.
        tell: takes lines for the person who watches.
    """
    (schedule.parent / FIRED).mkdir()
    env = {CHAOS.name: scene.mark, FAULTS.name: str(schedule.absolute())}
    env |= scene.network.environment if scene.network else {}
    began_s = time.time()
    os.utime(schedule, (began_s, began_s))  # the training processes count from there
    events = EventLog(schedule.parent, 0, "chaos")
    injector = Injector(faults, scene, events, tell)
    code, starts, struck = 1, 0, 0
    try:
        while True:
            starts += 1
            with _start(job, schedule.with_name("disturbed.log"), env) as process:
                code = _watch(process, injector, scene.run_dir, tell)
            events.write("left", code=code)
            before, struck = struck, len(faults) - len(injector.pending)
            if code == 0 or struck == before:  # nothing but itself has ended it
                break
            tell(f"the command ended with {code}, and is given again")
        injector.lift_all()
        wall_s = time.time() - began_s
        orphans = _orphans(scene.mark)
    finally:
        injector.lift_all()
        _end(scene.mark)
        events.close()
    left = tuple(fault.id for fault in injector.pending)
    return Ended(code, starts, wall_s, began_s, left, orphans)


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


def _watch(
    job: "subprocess.Popen[bytes]", injector: Injector, run_dir: Path, tell: Callable[[str], None]
) -> int:
    """Injects until the parent of a job has ended; returns its exit code."""
    told_s = time.monotonic()
    while job.poll() is None:
        injector.round()
        if time.monotonic() - told_s > TOLD_EVERY_S:
            told_s = time.monotonic()
            tell(f"step {injector.furthest}, {len(injector.pending)} faults to come")
            if _over(run_dir) or _silent(run_dir):
                job.kill()  # it was stopped for ever, or hangs
        time.sleep(ROUND_S)
    code = job.returncode
    return 128 - code if code < 0 else code


def _over(run_dir: Path) -> bool:
    """Returns whether the job was over some time ago; its parent then should be, too."""
    path = Control(run_dir).folder / "attempt.json"
    attempt = Control(run_dir).attempt()
    if attempt is None or attempt.state != "over" or not path.exists():
        return False
    return time.time() - path.stat().st_mtime > LEAVE_S + TOLD_EVERY_S


def _silent(run_dir: Path) -> bool:
    events = read_events(run_dir)
    return bool(events) and time.time() - events[-1]["time"] > SILENT_S


def _orphans(mark: str) -> tuple[str, ...]:
    """Returns what still runs once there was time to end."""
    until_s = time.monotonic() + LEAVE_S
    while (left := processes.processes(mark)) and time.monotonic() < until_s:
        time.sleep(0.1)
    return tuple(f"{process.role} of host {process.host}, pid {process.pid}" for process in left)


def _end(mark: str) -> None:
    """Ends everything that carries a mark, whatever state it is in; Ctrl-C has to wait for it."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        processes.end_all(mark, time.sleep)
    finally:
        signal.signal(signal.SIGINT, before)
