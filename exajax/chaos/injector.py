"""Injects a schedule of faults into a running job, from outside of its processes."""

import contextlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from exajax.chaos import disk
from exajax.chaos.faults import COMMIT, Fault
from exajax.chaos.strikes import STRIKES, Blow, Scene
from exajax.chaos.whereabouts import Whereabouts
from exajax.job.events import EventLog


class Injector:
    """Strikes when a fault is due, and takes it back when its time is over.

    Args:
        faults: the schedule.
        scene: where.
        events: takes an `injected` and a `lifted` for each fault.
        tell: takes a line for the person who watches.
    """

    def __init__(
        self,
        faults: Sequence[Fault],
        scene: Scene,
        events: EventLog,
        tell: Callable[[str], None],
    ) -> None:
        self.pending = list(faults)
        self._scene, self._events, self._tell = scene, events, tell
        self._whereabouts = Whereabouts(scene.run_dir)
        self._lasting: list[tuple[Fault, Blow, float]] = []
        self._started_s = time.monotonic()

    def round(self) -> None:
        """Does what is to be done now. To be called many times a second."""
        self._whereabouts.update()
        now_s = time.monotonic()
        for entry in list(self._lasting):
            fault, blow, since_s = entry
            if fault.duration_s is not None and now_s - since_s >= fault.duration_s:
                self._lasting.remove(entry)
                self._lift(fault, blow)
            else:
                blow.keep(now_s - since_s)
        for fault in list(self.pending):
            if fault.inside:
                self._note(fault)
            elif self._due(fault, now_s - self._started_s):
                self._strike(fault)

    @property
    def furthest(self) -> int:
        """The furthest step that any host has come to."""
        return max(self._whereabouts.of(host).step for host in range(self._scene.hosts))

    def lift_all(self) -> None:
        """Takes back everything that lasts."""
        while self._lasting:
            fault, blow, _ = self._lasting.pop()
            self._lift(fault, blow)

    def _host(self, fault: Fault) -> int:
        return fault.host(self._scene.hosts, leader_of(self._scene.run_dir))

    def _due(self, fault: Fault, elapsed_s: float) -> bool:
        if fault.at_s is not None and elapsed_s < fault.at_s:
            return False
        host = self._host(fault)
        if fault.step is not None and self._whereabouts.of(host).step < fault.step:
            return False
        if fault.phase == COMMIT:
            return disk.committing(self._scene.checkpoints)
        return fault.phase is None or self._whereabouts.has_been_at(host, fault.phase)

    def _strike(self, fault: Fault) -> None:
        host = self._host(fault)
        where = self._whereabouts.of(host)
        committing = disk.committing(self._scene.checkpoints)
        since_s = time.time()
        blow = STRIKES[fault.kind](self._scene, fault, host)
        if blow is None:
            return
        at = {"phase": where.phase, "step": where.step, **blow.facts}
        if blow.facts.get("attempt", where.attempt) > where.attempt:
            at = {
                **at,
                "phase": "start",
                "step": 0,
            }  # a new worker, which has not said anything yet
        self._struck(fault, host, since_s, at | {"committing": committing})
        self._lasting.append((fault, blow, time.monotonic()))

    def _note(self, fault: Fault) -> None:
        """Takes note of what a training process did to itself."""
        with contextlib.suppress(OSError, ValueError):
            note = json.loads((self._scene.fired / str(fault.id)).read_text())
            self._struck(fault, note.pop("host"), note.pop("time"), note)

    def _struck(self, fault: Fault, host: int, time_s: float, facts: Mapping[str, Any]) -> None:
        self.pending.remove(fault)
        target = "parent" if fault.role == "parent" else host
        about = {"id": fault.id, "kind": fault.kind, "target": target, "process": fault.role}
        about["attempt"] = self._whereabouts.of(host).attempt
        self._events.write("injected", **{**about, **facts, "time": time_s})
        self._tell(described(fault, host, facts))

    def _lift(self, fault: Fault, blow: Blow) -> None:
        blow.lift()
        self._events.write("lifted", id=fault.id, kind=fault.kind)


def leader_of(run_dir: Path) -> int:
    """Returns the number of the host that leads, or did last; 0 before there is one."""
    lease = max((run_dir / ".job").glob("lease-*"), default=None)
    with contextlib.suppress(OSError, ValueError, KeyError):
        if lease:
            return max(int(json.loads(lease.read_text())["host"]), 0)
    return 0


def described(fault: Fault, host: int, facts: Mapping[str, Any]) -> str:
    """Returns in words what a fault hit, and when."""
    whom = "the parent" if fault.role == "parent" else f"host {host}"
    if fault.role == "supervisor":
        whom = f"the supervisor of {whom}"
    at = f"at {facts.get('phase', '')} {facts.get('step', '')}".rstrip()
    committing = ", a checkpoint half written" if facts.get("committing") else ""
    lasts = f" for {fault.duration_s:g} s" if fault.duration_s is not None else ""
    return f"{fault.kind} of {whom}{lasts} {at}{committing}"
