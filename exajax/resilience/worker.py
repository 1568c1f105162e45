"""The training process of one host, as its supervisor runs it: start, watch, save and end, kill."""

import contextlib
import dataclasses
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from exajax.job import environment
from exajax.resilience.control import Attempt, Control, WorkerStatus
from exajax.resilience.deadlines import SILENT, Deadlines
from exajax.resilience.job import Job
from exajax.resilience.placement import HostPlacement
from exajax.spmd.mesh import MeshSpec

STOP_GRACE_S = 600.0
"""Seconds that a training process has to save and end after SIGTERM; a second Ctrl-C kills it."""

KILL_S = 30.0
"""Seconds that a process takes at most to end after SIGKILL, unless its driver or disk hangs."""


@dataclass
class WorkerProcess:
    """A running training process of one attempt.

    Attributes:
        process: the child process.
        attempt: number of the attempt that it belongs to.
        started_s: when it started, on the monotonic clock.
        status: its last status file, None before the first.
        status_s: when that status was new.
        stop_by_s: when it is killed after SIGTERM, None before SIGTERM.
    """

    process: "subprocess.Popen[bytes]"
    attempt: int
    started_s: float = field(default_factory=time.monotonic)
    status: WorkerStatus | None = None
    status_s: float = 0.0
    stop_by_s: float | None = None

    def poll(self) -> int | None:
        """Its exit code, 128 plus the number of a signal that ended it; None while it runs."""
        return None if (code := self.process.poll()) is None else _exit_code(code)

    def update(self, status: WorkerStatus | None) -> None:
        """Notes the status file's current content, where it is new and of this attempt."""
        if status and status.attempt == self.attempt and status != self.status:
            self.status, self.status_s = status, time.monotonic()

    def silence(self, deadlines: Deadlines) -> str | None:
        """What to report if it was silent for longer than its deadline, else None."""
        silent_s = time.monotonic() - (self.status_s if self.status else self.started_s)
        if silent_s <= deadlines.of(SILENT if self.status else "start", []):
            return None
        where = f"at {self.status.phase} {self.status.step}" if self.status else "at its start"
        return f"silent for {silent_s:.1f} s {where}"

    def terminate(self) -> None:
        """Asks it to save and end within `STOP_GRACE_S`."""
        self.process.send_signal(signal.SIGTERM)
        self.stop_by_s = time.monotonic() + STOP_GRACE_S

    def kill(self) -> int:
        """Kills it with all processes that it started; returns its exit code."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        return _exit_code(self.process.wait(KILL_S))

    def close(self) -> None:
        """Closes the pipe to an ended process."""
        if self.process.stdin:
            self.process.stdin.close()


def start_worker(
    job: Job, file: Path, attempt: Attempt, placement: HostPlacement, deadlines: Deadlines
) -> WorkerProcess:
    """Starts the training process of a host.

    Args:
        job: what to train; mesh and micro-batch are those of the attempt.
        file: takes the job, for the process to read.
        attempt: what the leader decided.
        placement: the host in its job.
        deadlines: of the process's phases.
    """
    changes: dict[str, Any] = {"mesh": MeshSpec.parse(attempt.mesh)}
    if attempt.micro_batch is not None:
        changes["micro_batch"] = attempt.micro_batch
    dataclasses.replace(job, recipe=job.recipe.replaced(**changes)).write(file)
    env = {
        environment.HOSTS.name: str(len(attempt.members)),
        environment.HOST.name: str(attempt.members.index(placement.host)),
        environment.LOCAL_HOST.name: str(placement.local),
        environment.COORDINATOR.name: attempt.coordinator,
        environment.ROLE.name: "worker",
        environment.LAUNCHER.name: placement.why,
        environment.ATTEMPT.name: f"{placement.host}:{attempt.number}",
        environment.DEADLINES.name: str(deadlines),
        environment.LIFELINE.name: "1",
        **({environment.COMPILE_ANEW.name: "1"} if attempt.anew else {}),
    }
    is_first = attempt.members[0] == placement.host
    process = subprocess.Popen(
        [sys.executable, "-m", "exajax", "job", str(file)],
        env={**os.environ, **env},
        stdin=subprocess.PIPE,  # never written: its end is the end of this process
        stdout=None if is_first else subprocess.DEVNULL,
        start_new_session=True,  # the terminal sends Ctrl-C to the supervisor alone
    )
    return WorkerProcess(process, attempt.number)


def kill_orphan(control: Control, host: int, machine: str, file: Path) -> None:
    """Kills the training process that an earlier supervisor of a host left on this machine."""
    worker, before = control.worker(host), control.host(host)
    if not worker or before is None or before.machine != machine:
        return
    with contextlib.suppress(OSError):
        # Process numbers are reused: only a process that was started with the host's file is ours.
        if f"\0{file}\0".encode() in Path(f"/proc/{worker.pid}/cmdline").read_bytes():
            os.kill(worker.pid, signal.SIGKILL)


def _exit_code(returncode: int) -> int:
    return 128 - returncode if returncode < 0 else returncode
