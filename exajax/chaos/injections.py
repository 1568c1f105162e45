"""Injection of faults from outside: signals, cut networks, full disks, damaged checkpoints."""

import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from exajax.chaos import disk, processes
from exajax.chaos.faults import Fault, Role
from exajax.chaos.namespaces import HostNetwork
from exajax.resilience.control import Control

SIGNALS = {"kill": signal.SIGKILL, "terminate": signal.SIGTERM, "stop": signal.SIGSTOP}

PERIOD_S = 0.25
"""Seconds; a slow host is stopped for a part of every such period."""

SETTLE_S = 0.1
"""Seconds between stopping a job and damaging its checkpoint, so that writes of a newer checkpoint
have reached the disk, or have not."""


@dataclass(frozen=True)
class JobUnderTest:
    """The running job that faults are injected into.

    Attributes:
        run_dir: its run folder.
        hosts: number of its hosts.
        mark: the mark in the environment of its processes.
        fired: folder where training processes note the faults that they inflicted on themselves.
        network: the network of the hosts, None where it cannot be cut.
        killed: processes that were killed and may not have ended yet.
    """

    run_dir: Path
    hosts: int
    mark: str
    fired: Path
    network: HostNetwork | None = None
    killed: set[int] = field(default_factory=set)

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.run_dir / "checkpoints"

    def process(self, role: Role, host: int | None) -> processes.JobProcess | None:
        """The running process with a role on a host, None without one."""
        running = processes.marked_processes(self.mark)
        return processes.select([p for p in running if p.pid not in self.killed], role, host)

    def kill(self, pid: int) -> bool:
        """Kills a process; returns whether it existed."""
        self.killed.add(pid)
        return processes.send_signal(pid, signal.SIGKILL)


@dataclass
class Injection:
    """A fault that has been injected.

    Attributes:
        facts: what was done, as JSON.
        lift: ends the fault when its duration is over.
        update: called many times a second until then, with the seconds since the injection.
    """

    facts: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    lift: Callable[[], None] = lambda: None
    update: Callable[[float], None] = lambda seconds: None


Inject = Callable[[JobUnderTest, Fault, int], Injection | None]
"""Injects a fault into a host; None while its target does not exist."""


def _signal(job: JobUnderTest, fault: Fault, host: int) -> Injection | None:
    target = job.process(fault.role, host)
    if not target:
        return None
    number = SIGNALS[fault.kind]
    kills = number == signal.SIGKILL
    if not (job.kill(target.pid) if kills else processes.send_signal(target.pid, number)):
        return None
    facts = {"pid": target.pid, "attempt": target.attempt or _attempt(job)}
    return Injection(facts, lambda: _continue(target.pid) if fault.kind == "stop" else None)


def _lost_coordinator(job: JobUnderTest, fault: Fault, host: int) -> Injection | None:
    """Kills the coordinator: the training process of the first member."""
    attempt = Control(job.run_dir).attempt()
    if not attempt or attempt.state != "run" or not attempt.members:
        return None
    target = job.process("worker", attempt.members[0])
    if not target or not job.kill(target.pid):
        return None
    facts = {"pid": target.pid, "attempt": target.attempt, "target": attempt.members[0]}
    return Injection(facts)


def _slow_host(job: JobUnderTest, fault: Fault, host: int) -> Injection | None:
    """Stops a host's worker for a part of every period, and the workers started after it."""
    if not job.process("worker", host):
        return None
    share = fault.detail("share")
    stopped: list[int] = []

    def update(seconds: float) -> None:
        stop = seconds % PERIOD_S < share * PERIOD_S
        if stop and not stopped:
            target = job.process("worker", host)
            if target and processes.send_signal(target.pid, signal.SIGSTOP):
                stopped.append(target.pid)
        elif not stop and stopped:
            _continue(stopped.pop())

    def lift() -> None:
        if stopped:
            _continue(stopped.pop())

    return Injection({"share": share}, lift, update)


def _cut_network(job: JobUnderTest, fault: Fault, host: int) -> Injection | None:
    network = job.network
    if network is None or not job.process("worker", host):
        return None
    network.cut(host)
    return Injection(lift=lambda: network.reconnect(host))


def _full_disk(job: JobUnderTest, fault: Fault, host: int) -> Injection | None:
    if not job.process("worker", host):
        return None
    filler = disk.fill(job.checkpoints)
    return Injection({"bytes": filler.stat().st_size}, lambda: filler.unlink(missing_ok=True))


def _damage(job: JobUnderTest, fault: Fault, host: int) -> Injection | None:
    """Damages the newest checkpoint, and kills a worker so that it is read.

    All workers are stopped meanwhile, or they would save a newer one. The only checkpoint of a run
    is never damaged: the run could not be restored.
    """
    workers = [job.process("worker", number) for number in range(job.hosts)]
    target = workers[host]
    if not target or len(disk.complete_checkpoints(job.checkpoints)) < 2:
        return None
    pids = [worker.pid for worker in workers if worker]
    stopped = [pid for pid in pids if processes.send_signal(pid, signal.SIGSTOP)]
    try:
        time.sleep(SETTLE_S)
        facts = disk.damage(fault, disk.complete_checkpoints(job.checkpoints)[-1])
        job.kill(target.pid)
    finally:
        for pid in stopped:
            _continue(pid)
    return Injection({"damaged": facts, "attempt": target.attempt})


INJECTIONS: Mapping[str, Inject] = {
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
"""The injection of each kind, except those that a training process inflicts on itself."""


def _attempt(job: JobUnderTest) -> int:
    attempt = Control(job.run_dir).attempt()
    return attempt.number if attempt else 0


def _continue(pid: int) -> None:
    processes.send_signal(pid, signal.SIGCONT)
