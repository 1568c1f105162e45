"""The files through which the supervisors of a job speak: `RUN_DIR/.job`.

Every host has the run folder; nothing else is needed, neither a server nor an open port. A file has
one writer and is replaced as a whole, so that a reader sees an old or a new one, never a half.
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

T = TypeVar("T", bound="Host | Worker | Attempt | Problem")

MOST_ATTEMPTS = 10**9
"""More attempts than a run can have."""

FILES_PER_S = 500.0
"""What all supervisors of a job write at most in a second, and all its training processes: a file
system that a thousand hosts share has other users."""


@dataclass(frozen=True)
class Host:
    """What a supervisor says of its host, anew in every round.

    Attributes:
        host: number of the host, from 0.
        job: which start of the command it belongs to.
        machine: where it runs, and since when that has been up.
        pid: of the supervisor.
        beat: counts rounds; a number that no longer changes is a supervisor that no longer lives.
        address: where other hosts reach this one.
        port: free for the coordinator of the next attempt, should it run here.
        local: number of this host's process on its node.
        attempt: the last one whose worker was started here, 0 before the first.
        running: whether that worker is alive.
        code: how it ended, None while it runs; 128 + the number of a signal that ended it.
        reason: why, in words, where the supervisor ended it.
        leaving: whether the host was asked to stop, or is drained.
        gone: whether this is the supervisor's last word.
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
class Worker:
    """What a training process says of itself, several times a second.

    Attributes:
        pid: of the process.
        attempt: that it belongs to.
        beat: counts what it has said; one that stands still is of a process that was stopped.
        phase: what it is at, of `exajax.train.loop.PHASES`.
        step: the update that it is at or behind.
        turns: phases that it has turned to. Hosts of one program turn to the same ones: who has
            turned to fewer is who the others wait for.
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
    """What the leader has decided: which hosts run, and how.

    Attributes:
        number: counts attempts at the run, over all its jobs.
        epoch: of the lease under which it was decided.
        job: which start of the command it belongs to.
        state: `run`, `save` (workers are asked to save and end), `end` (they are killed) or
            `over` (the job has ended).
        members: hosts by the number of their process in the job.
        coordinator: address and port of the first member.
        mesh: that the members make up, as it is written.
        micro_batch: sequences that a part of the batch works on at a time; None as in the recipe.
        fruitless: attempts in a row that brought no newer checkpoint.
        newest: step of the newest checkpoint when it was decided, -1 if there was none.
        code: exit code of the job that is over.
        reason: why it ends, in words.
        anew: whether workers compile and read nothing from the compilation cache; of an attempt
            that has ended, whether those of the next one do.
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
    """Why a training process ended, as it says itself.

    Attributes:
        attempt: that it belonged to.
        text: one line.
        recurs: whether another attempt on the same input is likely to meet it again.
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

    def host(self, number: int) -> Host | None:
        """Returns what a supervisor said last."""
        return _read(self.folder / f"host-{number}.json", Host)

    def worker(self, host: int) -> Worker | None:
        """Returns what the training process of a host said last."""
        return _read(self.folder / f"worker-{host}.json", Worker)

    def attempt(self) -> Attempt | None:
        """Returns what the leader decided last."""
        return _read(self.folder / "attempt.json", Attempt)

    def problem(self, host: int, attempt: int) -> Problem | None:
        """Returns why the process of a host ended in an attempt, None if it did not say."""
        said = _read(self.folder / f"problem-{host}.json", Problem)
        return said if said and said.attempt == attempt else None

    def drained(self, host: int) -> bool:
        """Returns whether somebody has taken a host out, with `touch RUN_DIR/.job/drain-HOST`."""
        return (self.folder / f"drain-{host}").exists()

    def publish(self, said: Host | Attempt) -> None:
        """Replaces what a supervisor or the leader said before."""
        name = "attempt" if isinstance(said, Attempt) else f"host-{said.host}"
        self._replace(name, asdict(said))

    def publish_worker(self, host: int, said: Worker) -> None:
        """Replaces what the training process of a host said before."""
        self._replace(f"worker-{host}", asdict(said))

    def publish_problem(self, host: int, said: Problem) -> None:
        """Replaces why an earlier training process of a host ended."""
        self._replace(f"problem-{host}", asdict(said))

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
            # On a full disk, into the room that it has; who reads a half of it reads it again.
            with path.open("r+") as file:
                file.write(text.ljust(os.path.getsize(path)))


def _read(path: Path, kind: type[T]) -> T | None:
    with contextlib.suppress(Malformed):
        return decode_record(read_bytes(path), kind)
    return None


def alive(pid: int) -> bool:
    """Returns whether a process of this machine is there and has not ended."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def period_s(least_s: float, hosts: int) -> float:
    """Returns the time between two files of one host, of so many that write as often."""
    return max(least_s, hosts / FILES_PER_S)


def newest_checkpoint(run_dir: Path) -> int:
    """Returns the step of the newest finished checkpoint of a run, -1 if there is none."""
    return max(steps_in(run_dir / "checkpoints"), default=-1)


def this_machine() -> str:
    """Returns a name for this machine that it has until it is started again.

    Containers that number their processes on their own are machines of their own.
    """
    with contextlib.suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{socket.gethostname()} {boot} {os.readlink('/proc/self/ns/pid')}"
    return socket.gethostname()
