"""The processes of a job, found by a mark in their environment at any moment.

The control files say where a process is once it says so itself; a fault may come before that.
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
class Found:
    """A process of the job.

    Attributes:
        pid: of the process.
        parent: of its parent.
        role: what it does.
        host: number of its host, None of the parent of all.
        attempt: that a worker belongs to, 0 for others.
    """

    pid: int
    parent: int
    role: Role
    host: int | None
    attempt: int


def processes(mark: str) -> list[Found]:
    """Returns the processes that live and carry a mark."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with contextlib.suppress(OSError, ValueError):  # one that ends just now
                if process := _described(entry, mark):
                    found.append(process)
    return found


def of(found: list[Found], role: Role, host: int | None) -> Found | None:
    """Returns the process with a role on a host, not one that it has started; or None.

    Args:
        found: where to look.
        role: what it does.
        host: number of its host; not asked of the parent.
    """
    same = [p for p in found if p.role == role and (role == "parent" or p.host == host)]
    inner = {process.pid for process in same}
    return next((process for process in same if process.parent not in inner), None)


def signalled(pid: int, number: signal.Signals) -> bool:
    """Sends a signal; returns whether the process was there."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True


def end_all(mark: str, wait: Callable[[float], None], rounds: int = 50) -> None:
    """Kills every process that carries a mark, until there is none."""
    for _ in range(rounds):
        left = processes(mark)
        if not left:
            return
        for process in left:
            signalled(process.pid, signal.SIGKILL)
        wait(0.1)


def _described(entry: Path, mark: str) -> Found | None:
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
    if place := ATTEMPT.get(env):
        role = "worker"
        host, attempt = place
    elif (number := HOST.get(env)) is not None:
        role, host = "supervisor", number
    return Found(int(entry.name), int(parent), role, host, attempt)
