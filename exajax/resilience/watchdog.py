"""The watchdog thread of a training process: publishes its status, and ends it when it is stuck.

JAX notices a peer that has died, but not one that is alive and hangs: a collective that a peer does
not enter waits for ever. The thread depends on nothing in the main thread, so that it runs while
the main thread waits in a collective.
"""

import collections
import contextlib
import faulthandler
import os
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exajax.job import environment
from exajax.job.events import EventLog
from exajax.resilience.control import Control, Problem, WorkerStatus, period_s
from exajax.resilience.deadlines import Deadlines
from exajax.train.hooks import Hooks

if TYPE_CHECKING:
    from exajax.job.compilation_cache import Compilation

BEAT_S = 0.25
"""Seconds between two heartbeats, unless there are very many hosts."""

STUCK = 75
"""Exit code of a process that missed the deadline of a phase: a restart may help."""

SUPERSEDED = 76
"""Exit code of a process whose attempt is over: the next one may be running already."""

FIRST = 10
"""A program from the compilation cache that has run this often in an attempt is not to blame for
later failures."""


class Watchdog(Hooks):
    """Watches the main thread of a training process by the phases that it enters.

    Attributes:
        events: the event log of the process.
        reads_cache: whether programs may come from the compilation cache; once the step is
            compiled, whether it did.

    Args:
        control: the control files of the run.
        host: number of the host.
        attempt: the attempt that this process belongs to.
        deadlines: of the phases.
        events: takes the phases that the process enters.
        every_step: whether every step is logged, as by the first process, or only the first one of
            several in a row.
        hosts: number of hosts of the attempt.
    """

    def __init__(
        self,
        control: Control,
        host: int,
        attempt: int,
        deadlines: Deadlines,
        events: EventLog,
        every_step: bool,
        hosts: int = 1,
    ) -> None:
        self._beat_s = period_s(BEAT_S, hosts)
        self._control, self._host, self._attempt = control, host, attempt
        self._deadlines, self.events, self._every_step = deadlines, events, every_step
        self._current = ("start", 0, 0, time.monotonic())  # phase, step, phases so far, since
        self.reads_cache = False
        self._times: collections.Counter[str] = collections.Counter()
        self._step_times_s: collections.deque[float] = collections.deque(maxlen=100)
        self._ended = threading.Event()
        self._beat = 0
        events.write("phase", phase="start", step=0)
        self._publish()
        threading.Thread(target=self._watch, daemon=True, name="watchdog").start()

    def progress(self, phase: str, step: int) -> None:
        """Notes that training enters a phase."""
        self.reads_cache |= phase == "compile"
        before, _, count, since_s = self._current
        now_s = time.monotonic()
        if before == phase == "step":
            self._step_times_s.append(now_s - since_s)
        self._times[phase] += 1
        self._current = phase, step, count + 1, now_s  # one assignment is atomic for the thread
        if phase != before or self._every_step:
            self.events.write("phase", phase=phase, step=step)

    def compiled(self, compilation: "Compilation") -> None:
        """Notes whether the step came from the compilation cache."""
        self.reads_cache = compilation.cache == "hit"

    def event(self, name: str, **facts: Any) -> None:
        """Writes down what becomes of checkpoints, and of the run's health."""
        self.events.write(name, **facts)

    def before_commit(self, step: int) -> None:
        """Ends this process if its attempt is over, before it writes a checkpoint."""
        self.check_current()

    def check_current(self) -> None:
        """Ends this process if its attempt is over."""
        attempt = self._control.attempt()
        if attempt and (attempt.number, attempt.state == "end") > (self._attempt, False):
            self.events.write("superseded", by=attempt.number)
            os._exit(SUPERSEDED)

    def close(self) -> None:
        """Stops watching."""
        self._ended.set()

    def _watch(self) -> None:
        while not self._ended.wait(self._beat_s):
            with contextlib.suppress(OSError):  # a full or failing disk must not end the watchdog
                self._publish()
            self.check_current()
            phase, step, _, since_s = self._current
            waited_s = time.monotonic() - since_s
            if waited_s > self._deadlines.of(phase, list(self._step_times_s)):
                self._abort_stuck(phase, step, waited_s)

    def _publish(self) -> None:
        self._beat += 1
        phase, step, count, _ = self._current
        unproven = self.reads_cache and self._times[phase] <= FIRST
        status = WorkerStatus(os.getpid(), self._attempt, self._beat, phase, step, count, unproven)
        self._control.publish_worker(self._host, status)

    def _abort_stuck(self, phase: str, step: int, waited_s: float) -> None:
        """Writes the stacks of all threads, and ends the process without cleaning up."""
        stacks = self._control.run_dir / "logs" / self.stacks
        stacks.parent.mkdir(exist_ok=True)
        with stacks.open("w") as file:
            faulthandler.dump_traceback(file, all_threads=True)
        self.events.write(
            "stuck", phase=phase, step=step, waited_s=waited_s, stacks=f"logs/{self.stacks}"
        )
        os._exit(STUCK)  # an orderly exit would wait for the same collective

    @property
    def stacks(self) -> str:
        """Name of the file with the stacks of all threads of a stuck process."""
        return f"stacks-host-{self._host}-attempt-{self._attempt}.txt"


def report_problem(run_dir: Path, text: str, recurs: bool) -> bool:
    """Reports to the leader why this process ends.

    Args:
        run_dir: the run folder.
        text: the error, one line.
        recurs: whether another attempt is likely to fail with it again.

    Returns:
        Whether this process is supervised, and the report was written.
    """
    supervised = environment.ATTEMPT.get()
    if supervised is None:
        return False
    host, attempt = supervised
    try:
        Control(run_dir).publish_problem(host, Problem(attempt, text, recurs))
    except OSError:
        return False
    return True


def start_watchdog(run_dir: Path, first: bool) -> Watchdog | None:
    """Starts the watchdog of this process; None if no supervisor has started it.

    Args:
        run_dir: the run folder.
        first: whether this is the job's first process.
    """
    supervised = environment.ATTEMPT.get()
    if supervised is None:
        return None
    host, attempt = supervised
    events = EventLog(run_dir, host, "worker", attempt)
    deadlines = Deadlines.parse(environment.DEADLINES.get() or "")
    hosts = environment.HOSTS.get() or 1
    return Watchdog(Control(run_dir), host, attempt, deadlines, events, first, hosts)
