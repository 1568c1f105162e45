"""The leader's lease on a run folder, which its holder renews and others take over when it dies.

Each of the files `lease-000001`, `lease-000002`, ... is created by exactly one process: creating a
file that must not exist is atomic on every file system that clusters share. The highest number
leads, and numbers only grow, so that a decision of an earlier leader is known by its lower number.
A holder is alive while its heartbeat changes, on the clock of the observer, so that clocks need not
agree; on the same machine, a holder whose process has ended is noticed at once.
"""

import contextlib
import os
import re
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from exajax.errors import InputError
from exajax.files.reading import Malformed, read_bytes
from exajax.files.schema import decode_record
from exajax.job.runtime import json_text
from exajax.resilience.control import alive, this_machine

SILENT_S = {True: 10.0, False: 60.0}
"""Seconds without a heartbeat after which a lease is lost, by whether all hosts are on this
machine; shared file systems may be suspended for longer."""

MOST = 999_999
"""Highest number of a lease, by the digits of its file name."""

NAMED = re.compile("lease-[0-9]{6}")

UNKNOWN = ""
"""The job of a holder whose file could not be read."""


@dataclass(frozen=True)
class Holder:
    """The supervisor that holds a lease.

    Attributes:
        epoch: number of the lease.
        job: identifies the start of the command.
        host: number of the host.
        machine: the machine and its boot, as of `this_machine`.
        pid: of the supervisor.
        started: start time of that process in clock ticks, since process numbers are reused.
        beat: heartbeat: counts renewals; -1 where the lease was released.
    """

    epoch: int
    job: str
    host: int
    machine: str
    pid: int
    started: str
    beat: int = 0


class Lease:
    """The lease on a run folder, as one supervisor takes and observes it.

    Attributes:
        epoch: number of the lease that this supervisor holds, 0 without one.

    Args:
        folder: the control folder; created if missing.
        job: the supervisor's job.
        host: its host.
        silent_s: seconds without a renewal after which the lease is free.
        after: number of the last lease that something was decided under; its file may be gone.
    """

    def __init__(
        self, folder: Path, job: str, host: int, silent_s: float = SILENT_S[True], after: int = 0
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._identity = job, host, this_machine(), os.getpid(), _start_ticks()
        self._silent_s, self._after = silent_s, after
        self._seen: Holder | None = None
        self._seen_s = time.monotonic()
        self.epoch = 0

    def holder(self) -> Holder | None:
        """The supervisor that leads; None if there is none, or it has ended or is silent."""
        newest = self._newest()
        if newest is None:
            self._seen = None
            return None
        # A file that is being replaced, or that a slow file system still lists, cannot be read.
        epoch = int(newest.name[6:])
        holder = _read(newest)
        if holder is None or holder.epoch != epoch:
            holder = Holder(epoch, UNKNOWN, -1, "", 0, "")
        if holder != self._seen:
            self._seen, self._seen_s = holder, time.monotonic()
        if holder.beat < 0:
            return None
        if holder.machine == this_machine() and _start_ticks(holder.pid) != holder.started:
            return None
        return holder if time.monotonic() - self._seen_s < self._silent_s else None

    def reset_silence(self) -> None:
        """Starts the holder's silence anew, because this process was suspended for a while."""
        self._seen_s = time.monotonic()

    def hold(self) -> bool:
        """Renews the lease, or takes a free one; returns whether this process leads."""
        holder = self.holder()
        if holder is not None and holder.epoch != self.epoch:
            self.epoch = 0
            return False
        if holder is None and not self._take():
            return False
        beat = self._seen.beat + 1 if self._seen else 1
        self._write(Holder(self.epoch, *self._identity, beat))
        return True

    def release(self) -> None:
        """Releases the lease, if this process holds it; its number stays used."""
        if self.epoch and self._is_newest():
            self._write(Holder(self.epoch, *self._identity, -1))
        self.epoch = 0

    def _take(self) -> bool:
        epoch = max(self._seen.epoch if self._seen else 0, self._after) + 1
        if epoch > MOST:
            raise InputError(
                "run_dir",
                f"{self._folder} has come to lease {MOST}, the last that there can be",
                "remove that folder once no job runs there",
            )
        path = self._folder / f"lease-{epoch:06d}"
        new = self._temporary(Holder(epoch, *self._identity))
        try:
            os.link(new, path)  # atomic: fails if the file exists
        except FileExistsError:
            return False
        finally:
            new.unlink()
        self.epoch = epoch
        for old in self._folder.glob("lease-*"):
            if old.name < path.name:
                old.unlink(missing_ok=True)
        return True

    def _is_newest(self) -> bool:
        newest = self._newest()
        return newest is not None and newest.name == f"lease-{self.epoch:06d}"

    def _newest(self) -> Path | None:
        leases = (path for path in self._folder.glob("lease-*") if NAMED.fullmatch(path.name))
        return max(leases, default=None)

    def _write(self, holder: Holder) -> None:
        self._temporary(holder).replace(self._folder / f"lease-{holder.epoch:06d}")

    def _temporary(self, holder: Holder) -> Path:
        new = self._folder / f".lease.{os.getpid()}"
        new.write_text(json_text(asdict(holder)))
        return new


def _read(path: Path) -> Holder | None:
    with contextlib.suppress(Malformed):
        return decode_record(read_bytes(path), Holder)
    return None


def _start_ticks(pid: int | None = None) -> str:
    """The start time of a process of this machine in clock ticks since boot; empty if it is gone.

    proc_pid_stat(5), field 22.
    """
    pid = os.getpid() if pid is None else pid
    if not alive(pid):
        return ""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    return ""
