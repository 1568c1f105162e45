"""The control files of a job, `RUN_DIR/.job`: statuses and decisions that supervisors exchange.

All hosts share the run folder, so that neither a server nor an open port is needed. A file has one
writer and is replaced atomically: readers see the old or the new content, never a part of it.
"""

import contextlib
import errno
import os
import socket
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field

from exajax.files.reading import Malformed, read_bytes
from exajax.files.schema import decode_record
from exajax.job.runtime import json_text
from exajax.train.checkpoint.folder import steps_in

T = TypeVar("T", bound="HostStatus | WorkerStatus | Attempt | Problem")

MOST_ATTEMPTS = 10**9
"""More attempts than a run can have."""

FILES_PER_S = 500.0
"""Files that all supervisors of a job together write at most in a second, and all its training
processes: a file system that a thousand hosts share has other users."""


@dataclass(frozen=True)
class HostStatus:
    """The status of a host, which its supervisor writes in every round.

    Attributes:
        host: number of the host, from 0.
        job: identifies the start of the command.
        machine: the machine and its boot, as of `this_machine`.
        pid: of the supervisor.
        beat: heartbeat: counts rounds, and stands still when the supervisor is dead.
        address: host name or address at which other hosts reach this one.
        port: a free port for the coordinator of the next attempt, should it run here.
        local: rank of this host's process on its node.
        attempt: the last attempt whose training process was started here, 0 before the first.
        running: whether that process is alive.
        code: its exit code, None while it runs; 128 plus the number of a signal that ended it.
        reason: why the supervisor ended it, if it did.
        leaving: whether the host was asked to stop, or is drained.
        gone: whether the supervisor ends after this status.
    """

    host: int
    job: str
    machine: str
    pid: int
    beat: int
    address: str
    port: int
    local: int
    attempt: int = 0
    running: bool = False
    code: int | None = None
    reason: str = ""
    leaving: bool = False
    gone: bool = False


@dataclass(frozen=True)
class WorkerStatus:
    """The status of a training process, which it writes several times a second.

    Attributes:
        pid: of the process.
        attempt: the attempt that it belongs to.
        beat: heartbeat: counts statuses, and stands still when the process is stopped.
        phase: the current phase, one of `exajax.job.events.PHASES`.
        step: the current update, or the last one.
        turns: number of phases entered so far. All hosts enter the same phases, so that the others
            wait for the one with the lowest number.
        unproven: whether it runs a program from the compilation cache for one of the first times.
    """

    pid: int
    attempt: int
    beat: int
    phase: str
    step: int
    turns: int
    unproven: bool = False


@dataclass(frozen=True)
class Attempt:
    """One attempt to train on some hosts, as the leader has decided it.

    Attributes:
        number: counts attempts at the run, over all its jobs.
        epoch: number of the lease under which it was decided.
        job: identifies the start of the command.
        state: `run`; `save`: training processes are to save and end; `end`: they are killed;
            `over`: the job has ended.
        members: hosts, in the order of their processes' ranks.
        coordinator: `HOST:PORT` of the first member.
        mesh: the mesh of the members' devices, as text.
        micro_batch: sequences of a micro-batch; None as in the recipe.
        fruitless: attempts in a row that brought no newer checkpoint.
        newest: step of the newest checkpoint when it was decided, -1 if there was none.
        code: exit code of a job that is over.
        reason: why it ends, in words.
        anew: whether training processes overwrite the compilation cache instead of reading it; of
            an attempt that has ended, whether those of the next attempt do.
    """

    number: Annotated[int, Field(ge=0, le=MOST_ATTEMPTS)]
    epoch: Annotated[int, Field(ge=0, le=MOST_ATTEMPTS)]
    job: str
    state: Literal["run", "save", "end", "over"]
    members: tuple[int, ...] = ()
    coordinator: str = ""
    mesh: str = ""
    micro_batch: int | None = None
    fruitless: int = 0
    newest: int = -1
    code: int | None = None
    reason: str = ""
    anew: bool = False


@dataclass(frozen=True)
class Problem:
    """The error with which a training process ended, which it writes before it ends.

    Attributes:
        attempt: the attempt that it belonged to.
        text: the message, one line.
        recurs: whether another attempt is likely to fail with it again.
    """

    attempt: int
    text: str
    recurs: bool


class Control:
    """The control files of a run.

    Args:
        run_dir: the run folder.
    """

    def __init__(self, run_dir: Path) -> None:
        self.run_dir, self.folder = run_dir, run_dir / ".job"

    def host(self, number: int) -> HostStatus | None:
        """The last status of a host."""
        return _read(self.folder / f"host-{number}.json", HostStatus)

    def worker(self, host: int) -> WorkerStatus | None:
        """The last status of a host's training process."""
        return _read(self.folder / f"worker-{host}.json", WorkerStatus)

    def attempt(self) -> Attempt | None:
        """The leader's last decision."""
        return _read(self.folder / "attempt.json", Attempt)

    def problem(self, host: int, attempt: int) -> Problem | None:
        """The error of a host's training process in an attempt, None if it reported none."""
        problem = _read(self.folder / f"problem-{host}.json", Problem)
        return problem if problem and problem.attempt == attempt else None

    def drained(self, host: int) -> bool:
        """Whether a person has drained a host, with `touch RUN_DIR/.job/drain-HOST`."""
        return (self.folder / f"drain-{host}").exists()

    def publish(self, content: HostStatus | Attempt) -> None:
        """Replaces the status of a host, or the leader's decision."""
        name = "attempt" if isinstance(content, Attempt) else f"host-{content.host}"
        self._replace(name, asdict(content))

    def publish_worker(self, host: int, status: WorkerStatus) -> None:
        """Replaces the status of a host's training process."""
        self._replace(f"worker-{host}", asdict(status))

    def publish_problem(self, host: int, problem: Problem) -> None:
        """Replaces the error of a host's training process."""
        self._replace(f"problem-{host}", asdict(problem))

    def _replace(self, name: str, content: Mapping[str, Any]) -> None:
        new, path = self.folder / f".{name}.{os.getpid()}", self.folder / f"{name}.json"
        text = json_text(content)
        try:
            new.write_text(text)
            new.replace(path)
        except OSError as error:
            new.unlink(missing_ok=True)
            if error.errno != errno.ENOSPC or not path.exists():
                raise
            # On a full disk, overwrite the file in place; a reader of half a file reads it again.
            with path.open("r+") as file:
                file.write(text.ljust(os.path.getsize(path)))


def _read(path: Path, kind: type[T]) -> T | None:
    with contextlib.suppress(Malformed):
        return decode_record(read_bytes(path), kind)
    return None


def alive(pid: int) -> bool:
    """Whether a process of this machine exists and is no zombie."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def period_s(least_s: float, hosts: int) -> float:
    """Seconds between two files of one host, so that all hosts stay below `FILES_PER_S`.

    Args:
        least_s: the period of few hosts.
        hosts: number of hosts of the job.
    """
    return max(least_s, hosts / FILES_PER_S)


def newest_checkpoint(run_dir: Path) -> int:
    """The step of the newest finished checkpoint of a run, -1 if there is none."""
    return max(steps_in(run_dir / "checkpoints"), default=-1)


def this_machine() -> str:
    """A name of this machine and its boot: equal names mean that process numbers are comparable.

    Containers with a process namespace of their own count as machines of their own.
    """
    with contextlib.suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{socket.gethostname()} {boot} {os.readlink('/proc/self/ns/pid')}"
    return socket.gethostname()
