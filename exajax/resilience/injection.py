"""Injects a schedule of faults into a running job, from outside of its processes."""

import contextlib
import json
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from exajax.events import EventLog
from exajax.faults import COMMIT, Fault
from exajax.resilience import injection_disk as disk
from exajax.resilience import injection_processes as processes
from exajax.resilience.control import Control
from exajax.resilience.injection_whereabouts import Whereabouts
from exajax.resilience.namespaces import Network

SIGNALS = {"kill": signal.SIGKILL, "terminate": signal.SIGTERM, "stop": signal.SIGSTOP}

PERIOD_S = 0.25
"""A slow host is stopped for a part of every such time."""

HELD_S = 0.1
"""Time for which a job is held still while its checkpoint is damaged: what was being written of a
newer one has then reached the disk, or is not finished."""


@dataclass(frozen=True)
class Scene:
    """Where faults are injected.

    Attributes:
        run_dir: folder of the run.
        hosts: how many the job has.
        mark: that its processes carry in their environment.
        fired: folder where the training processes leave a note of what they did to themselves.
        network: that joins the hosts, if it can be cut.
        killed: processes that were killed, and may be on their way out.
    """

    run_dir: Path
    hosts: int
    mark: str
    fired: Path
    network: Network | None = None
    killed: set[int] = field(default_factory=set)

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.run_dir / "checkpoints"

    def process(self, role: Any, host: int | None) -> processes.Found | None:
        """Returns the process with a role on a host, if it is there."""
        found = processes.processes(self.mark)
        return processes.of([p for p in found if p.pid not in self.killed], role, host)

    def kill(self, pid: int) -> bool:
        """Kills a process; returns whether it was there."""
        self.killed.add(pid)
        return processes.signalled(pid, signal.SIGKILL)


@dataclass
class Blow:
    """A fault that has struck.

    Attributes:
        facts: what was done, as JSON.
        lift: takes it back when its time is over.
        keep: called again and again until then, with the seconds since it struck.
    """

    facts: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    lift: Callable[[], None] = lambda: None
    keep: Callable[[float], None] = lambda seconds: None


Strike = Callable[[Scene, Fault, int], Blow | None]
"""Strikes a host; None if there is nothing yet that it could strike."""


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


def _signal(scene: Scene, fault: Fault, host: int) -> Blow | None:
    target = scene.process(fault.role, host)
    if not target:
        return None
    number = SIGNALS[fault.kind]
    kills = number == signal.SIGKILL
    if not (scene.kill(target.pid) if kills else processes.signalled(target.pid, number)):
        return None
    facts = {"pid": target.pid, "attempt": target.attempt or _attempt(scene)}
    return Blow(facts, lambda: _go_on(target.pid) if fault.kind == "stop" else None)


def _lost_coordinator(scene: Scene, fault: Fault, host: int) -> Blow | None:
    """Kills the process that the others have joined: the first member's."""
    attempt = Control(scene.run_dir).attempt()
    if not attempt or attempt.state != "run" or not attempt.members:
        return None
    target = scene.process("worker", attempt.members[0])
    if not target or not scene.kill(target.pid):
        return None
    facts = {"pid": target.pid, "attempt": target.attempt, "target": attempt.members[0]}
    return Blow(facts)


def _slow_host(scene: Scene, fault: Fault, host: int) -> Blow | None:
    """Stops a worker for a part of every period, and whoever follows it."""
    if not scene.process("worker", host):
        return None
    share = fault.detail("share")
    stopped: list[int] = []

    def keep(seconds: float) -> None:
        stop = seconds % PERIOD_S < share * PERIOD_S
        if stop and not stopped:
            target = scene.process("worker", host)
            if target and processes.signalled(target.pid, signal.SIGSTOP):
                stopped.append(target.pid)
        elif not stop and stopped:
            _go_on(stopped.pop())

    return Blow({"share": share}, lambda: _go_on(stopped.pop()) if stopped else None, keep)


def _cut_network(scene: Scene, fault: Fault, host: int) -> Blow | None:
    network = scene.network
    if network is None or not scene.process("worker", host):
        return None
    network.cut(host)
    return Blow(lift=lambda: network.mend(host))


def _full_disk(scene: Scene, fault: Fault, host: int) -> Blow | None:
    if not scene.process("worker", host):
        return None
    filler = disk.fill(scene.checkpoints)
    return Blow({"bytes": filler.stat().st_size}, lambda: filler.unlink(missing_ok=True))


def _damage(scene: Scene, fault: Fault, host: int) -> Blow | None:
    """Damages the newest checkpoint, and kills a worker so that it is read.

    Meanwhile no worker may go on: it would save a newer one.
    """
    workers = [scene.process("worker", number) for number in range(scene.hosts)]
    target = workers[host]
    if not target or not disk.proven(scene.checkpoints):
        return None
    held = [worker.pid for worker in workers if worker and _stopped(worker.pid)]
    try:
        time.sleep(HELD_S)
        facts = disk.damage(fault, disk.proven(scene.checkpoints)[-1])
        scene.kill(target.pid)
    finally:
        for pid in held:
            _go_on(pid)
    return Blow({"damaged": facts, "attempt": target.attempt})


STRIKES: Mapping[str, Strike] = {
    "kill": _signal,
    "terminate": _signal,
    "stop": _signal,
    "lost-coordinator": _lost_coordinator,
    "slow-host": _slow_host,
    "cut-network": _cut_network,
    "full-disk": _full_disk,
    "truncate": _damage,
    "bit-flip": _damage,
}
"""How each kind strikes; the others a training process does to itself."""


def _attempt(scene: Scene) -> int:
    attempt = Control(scene.run_dir).attempt()
    return attempt.number if attempt else 0


def _stopped(pid: int) -> bool:
    return processes.signalled(pid, signal.SIGSTOP)


def _go_on(pid: int) -> None:
    processes.signalled(pid, signal.SIGCONT)
