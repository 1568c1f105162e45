"""Inside a training process: says where it is, and ends it when it is stuck.

JAX notices a peer that has died, and never one that lives and does nothing; a collective that a
peer does not enter waits for ever. The thread here needs nothing of the main thread: it runs while
that one waits inside a collective.
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
from exajax.resilience.control import Control, Problem, Worker, period_s
from exajax.resilience.deadlines import Deadlines
from exajax.train.hooks import Hooks

if TYPE_CHECKING:
    from exajax.job.compilation_cache import Compilation

BEAT_S = 0.25
"""Time between two beats, unless there are very many hosts."""

STUCK = 75
"""Exit code of a process that was at one thing for too long: a restart may help."""

SUPERSEDED = 76
"""Exit code of a process whose attempt is over: another one may be running already."""

FIRST = 10
"""A program from the compilation cache that has run so often in an attempt is not to blame for
what happens later."""


class Watchdog(Hooks):
    """Watches the main thread of this process, by the phases that training turns to.

    Attributes:
        events: where phases go.
        reads_cache: whether programs may come from the compilation cache; once the step is there,
            whether it did.

    Args:
        control: of the run.
        host: number of the host, as its supervisor counts.
        attempt: that this process belongs to.
        deadlines: how long each phase may take.
        events: where phases go: all of them on the first process, on the others changes alone.
        every_step: whether steps are events too.
        hosts: how many the attempt has.
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
        self._at = ("start", 0, 0, time.monotonic())
        self.reads_cache = False
        self._times: collections.Counter[str] = collections.Counter()
        self._step_times_s: collections.deque[float] = collections.deque(maxlen=100)
        self._ended = threading.Event()
        self._beat = 0
        events.write("phase", phase="start", step=0)
        self._say()
        threading.Thread(target=self._watch, daemon=True, name="watchdog").start()

    def progress(self, phase: str, step: int) -> None:
        """Takes note that training turns to a phase."""
        self.reads_cache |= phase == "compile"
        before, _, turns, since_s = self._at
        now_s = time.monotonic()
        if before == phase == "step":
            self._step_times_s.append(now_s - since_s)
        self._times[phase] += 1
        self._at = phase, step, turns + 1, now_s  # one assignment: the thread sees all of it
        if phase != before or self._every_step:
            self.events.write("phase", phase=phase, step=step)

    def compiled(self, compilation: "Compilation") -> None:
        """Takes note of whether the step came from the compilation cache."""
        self.reads_cache = compilation.cache == "hit"

    def event(self, name: str, **facts: Any) -> None:
        """Writes down what becomes of checkpoints, and of the run's health."""
        self.events.write(name, **facts)

    def before_commit(self, step: int) -> None:
        """Ends this process if its attempt is over: a checkpoint of it would not count."""
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
            with contextlib.suppress(OSError):  # a full or a sick disk is not to end the watch
                self._say()
            self.check_current()
            phase, step, _, since_s = self._at
            waited_s = time.monotonic() - since_s
            if waited_s > self._deadlines.of(phase, list(self._step_times_s)):
                self._give_up(phase, step, waited_s)

    def _say(self) -> None:
        self._beat += 1
        phase, step, turns, _ = self._at
        unproven = self.reads_cache and self._times[phase] <= FIRST
        self._control.publish_worker(
            self._host, Worker(os.getpid(), self._attempt, self._beat, phase, step, turns, unproven)
        )

    def _give_up(self, phase: str, step: int, waited_s: float) -> None:
        stacks = self._control.run_dir / "logs" / self.stacks
        stacks.parent.mkdir(exist_ok=True)
        with stacks.open("w") as file:
            faulthandler.dump_traceback(file, all_threads=True)
        self.events.write(
            "stuck", phase=phase, step=step, waited_s=waited_s, stacks=f"logs/{self.stacks}"
        )
        os._exit(STUCK)  # leaving in order would wait for what this process waits for

    @property
    def stacks(self) -> str:
        """Name of the file that says where every thread was when this process was stuck."""
        return f"stacks-host-{self._host}-attempt-{self._attempt}.txt"


def report(run_dir: Path, text: str, recurs: bool) -> bool:
    """Tells the leader why this process ends; returns whether there is one that can be told."""
    place = environment.ATTEMPT.get()
    if place is None:
        return False
    host, attempt = place
    try:
        Control(run_dir).publish_problem(host, Problem(attempt, text, recurs))
    except OSError:
        return False
    return True


def supervised(run_dir: Path, first: bool) -> Watchdog | None:
    """Returns the watchdog of this process, None if no supervisor has started it.

    Args:
        run_dir: the run folder.
        first: whether this is the job's first process.
    """
    place = environment.ATTEMPT.get()
    if place is None:
        return None
    host, attempt = place
    events = EventLog(run_dir, host, "worker", attempt)
    deadlines = Deadlines.parse(environment.DEADLINES.get() or "")
    hosts = environment.HOSTS.get() or 1
    return Watchdog(Control(run_dir), host, attempt, deadlines, events, first, hosts)
