"""Injects a schedule of faults into a running job, from outside of its processes."""

import contextlib
import json
import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from exajax.chaos import disk
from exajax.chaos.faults import COMMIT, Fault
from exajax.chaos.injections import INJECTIONS, Injection, JobUnderTest
from exajax.chaos.worker_progress import RunProgress
from exajax.job.events import EventLog

LOGGER = logging.getLogger(__name__)


class Injector:
    """Injects faults when they are due, and lifts them when their duration is over.

    Args:
        faults: the schedule.
        job: the running job.
        events: takes the events `injected` and `lifted` of each fault.

    Attributes:
        pending: faults that have not been injected.
    """

    def __init__(self, faults: Sequence[Fault], job: JobUnderTest, events: EventLog) -> None:
        self.pending = list(faults)
        self._job, self._events = job, events
        self._progress = RunProgress(job.run_dir)
        self._active: list[tuple[Fault, Injection, float]] = []
        self._started_s = time.monotonic()

    def round(self) -> None:
        """Injects and lifts what is due now; to be called many times a second."""
        self._progress.update()
        now_s = time.monotonic()
        for entry in list(self._active):
            fault, injection, since_s = entry
            if fault.duration_s is not None and now_s - since_s >= fault.duration_s:
                self._active.remove(entry)
                self._lift(fault, injection)
            else:
                injection.update(now_s - since_s)
        for fault in list(self.pending):
            if fault.inside:
                self._check_note(fault)
            elif self._due(fault, now_s - self._started_s):
                self._inject(fault)

    @property
    def furthest(self) -> int:
        """The highest step that any host has reached."""
        return max(self._progress.of(host).step for host in range(self._job.hosts))

    def lift_all(self) -> None:
        """Lifts all faults that last."""
        while self._active:
            fault, injection, _ = self._active.pop()
            self._lift(fault, injection)

    def _host(self, fault: Fault) -> int:
        return fault.host(self._job.hosts, leader_of(self._job.run_dir))

    def _due(self, fault: Fault, elapsed_s: float) -> bool:
        if fault.at_s is not None and elapsed_s < fault.at_s:
            return False
        host = self._host(fault)
        if fault.step is not None and self._progress.of(host).step < fault.step:
            return False
        if fault.phase == COMMIT:
            return disk.save_in_progress(self._job.checkpoints)
        return fault.phase is None or self._progress.entered(host, fault.phase)

    def _inject(self, fault: Fault) -> None:
        host = self._host(fault)
        progress = self._progress.of(host)
        committing = disk.save_in_progress(self._job.checkpoints)
        time_s = time.time()
        injection = INJECTIONS[fault.kind](self._job, fault, host)
        if injection is None:
            return
        facts = {"phase": progress.phase, "step": progress.step, **injection.facts}
        if injection.facts.get("attempt", progress.attempt) > progress.attempt:
            facts |= {"phase": "start", "step": 0}  # a new worker that has not logged a phase yet
        self._note(fault, host, time_s, facts | {"committing": committing})
        self._active.append((fault, injection, time.monotonic()))

    def _check_note(self, fault: Fault) -> None:
        """Notes a fault that a training process has inflicted on itself, once it has."""
        with contextlib.suppress(OSError, ValueError):
            note = json.loads((self._job.fired / str(fault.id)).read_text())
            self._note(fault, note.pop("host"), note.pop("time"), note)

    def _note(self, fault: Fault, host: int, time_s: float, facts: Mapping[str, Any]) -> None:
        """Writes the event and the log line of an injected fault."""
        self.pending.remove(fault)
        target = "parent" if fault.role == "parent" else host
        about = {"id": fault.id, "kind": fault.kind, "target": target, "process": fault.role}
        about["attempt"] = self._progress.of(host).attempt
        self._events.write("injected", **{**about, **facts, "time": time_s})
        LOGGER.info("%s", summary(fault, host, facts))

    def _lift(self, fault: Fault, injection: Injection) -> None:
        injection.lift()
        self._events.write("lifted", id=fault.id, kind=fault.kind)


def leader_of(run_dir: Path) -> int:
    """The number of the host that leads, or led last; 0 before there is a leader."""
    lease = max((run_dir / ".job").glob("lease-*"), default=None)
    with contextlib.suppress(OSError, ValueError, KeyError):
        if lease:
            return max(int(json.loads(lease.read_text())["host"]), 0)
    return 0


def summary(fault: Fault, host: int, facts: Mapping[str, Any]) -> str:
    """One line for the log about an injected fault, such as `kill of host 1 at step 12`."""
    target = "the parent" if fault.role == "parent" else f"host {host}"
    if fault.role == "supervisor":
        target = f"the supervisor of {target}"
    where = f"at {facts.get('phase', '')} {facts.get('step', '')}".rstrip()
    committing = ", a checkpoint half written" if facts.get("committing") else ""
    duration = f" for {fault.duration_s:g} s" if fault.duration_s is not None else ""
    return f"{fault.kind} of {target}{duration} {where}{committing}"
