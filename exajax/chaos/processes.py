"""The processes of a running job, found by a mark in their environment.

Unlike the control files, this finds a process before it has written its first status.
"""

import contextlib
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from exajax.chaos.faults import Role
from exajax.job.environment import ATTEMPT, CHAOS, HOST


@dataclass(frozen=True)
class JobProcess:
    """A running process of the job.

    Attributes:
        pid: its process number.
        parent: the process number of its parent.
        role: `worker`, `supervisor` or `parent`.
        host: number of its host; None for the parent of all hosts.
        attempt: the attempt that a worker belongs to, 0 for others.
    """

    pid: int
    parent: int
    role: Role
    host: int | None
    attempt: int


def marked_processes(mark: str) -> list[JobProcess]:
    """The running processes that carry a mark."""
    marked = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with contextlib.suppress(OSError, ValueError):  # it ended meanwhile
                if process := _read(entry, mark):
                    marked.append(process)
    return marked


def select(candidates: list[JobProcess], role: Role, host: int | None) -> JobProcess | None:
    """The process with a role on a host, rather than its children; None without one.

    Args:
        candidates: the processes of the job.
        role: of the process.
        host: number of its host; ignored for the parent.
    """
    same = [p for p in candidates if p.role == role and (role == "parent" or p.host == host)]
    pids = {process.pid for process in same}
    return next((process for process in same if process.parent not in pids), None)


def send_signal(pid: int, number: signal.Signals) -> bool:
    """Sends a signal to a process; returns whether it exists."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True


def kill_all(mark: str, wait: Callable[[float], None], rounds: int = 50) -> None:
    """Kills every process that carries a mark, until there is none."""
    for _ in range(rounds):
        left = marked_processes(mark)
        if not left:
            return
        for process in left:
            send_signal(process.pid, signal.SIGKILL)
        wait(0.1)


def _read(entry: Path, mark: str) -> JobProcess | None:
    """The process of a folder of /proc; None if it does not carry the mark, or is a zombie."""
    pairs = (
        pair.partition("=") for pair in (entry / "environ").read_text("utf8", "replace").split("\0")
    )
    env = {name: value for name, _, value in pairs}
    if env.get(CHAOS.name) != mark:
        return None
    state, parent = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
    if state == "Z":
        return None
    host, attempt = None, 0
    role: Role = "parent"
    if worker := ATTEMPT.get(env):
        role = "worker"
        host, attempt = worker
    elif (number := HOST.get(env)) is not None:
        role, host = "supervisor", number
    return JobProcess(int(entry.name), int(parent), role, host, attempt)
