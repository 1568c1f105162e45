"""How faults strike a job from outside: signals, cut networks, full disks, damaged checkpoints."""

import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from exajax.chaos import disk, processes
from exajax.chaos.faults import Fault
from exajax.chaos.namespaces import Network
from exajax.resilience.control import Control

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

    Meanwhile no worker may go on: it would save a newer one. The only checkpoint is let be: without
    another a run ends, and says so.
    """
    workers = [scene.process("worker", number) for number in range(scene.hosts)]
    target = workers[host]
    if not target or len(disk.proven(scene.checkpoints)) < 2:
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
