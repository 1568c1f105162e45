"""Who leads a job: a lease on the run folder that its holder renews and others may take over.

The files `lease-000001`, `lease-000002`, ... are each made by exactly one process: to create a file
that must not exist is atomic on every file system that clusters share. The highest number leads,
and numbers only grow: what an earlier leader decided is known by its lower one.
Whether its holder lives is seen by its count going on, on the clock of whoever looks, so that
clocks need not agree; on the same machine a holder that has ended is known at once.
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
"""A holder that is silent for longer has lost its lease, by whether all hosts are one machine; file
systems that many share stand still for longer."""

MOST = 999_999
"""Number of the last lease that its name has room for."""

NAMED = re.compile("lease-[0-9]{6}")

UNKNOWN = ""
"""The job of a holder that could not be read."""


@dataclass(frozen=True)
class Holder:
    """Who leads.

    Attributes:
        epoch: number of the lease.
        job: which start of the command it belongs to.
        host: number of the host.
        machine: name of the machine, with the time it was started.
        pid: of the supervisor.
        started: when that process began, as the kernel counts; numbers of processes come back.
        beat: counts renewals; -1 where the lease was given up.
    """

    epoch: int
    job: str
    host: int
    machine: str
    pid: int
    started: str
    beat: int = 0


class Lease:
    """The lease of a run folder as one supervisor sees it.

    Args:
        folder: the control folder; made if it is not there.
        job: the supervisor's job.
        host: its host.
        silent_s: time without a renewal after which the lease is free.
        after: number of the last lease that something was decided under; its file may be gone.
    """

    def __init__(
        self, folder: Path, job: str, host: int, silent_s: float = SILENT_S[True], after: int = 0
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._mine = folder, (job, host, this_machine(), os.getpid(), _started())
        self._silent_s, self._after = silent_s, after
        self._seen: Holder | None = None
        self._seen_s = time.monotonic()
        self.epoch = 0

    def holder(self) -> Holder | None:
        """Returns who leads, None if nobody does or who did has ended or is silent."""
        newest = self._newest()
        if newest is None:
            self._seen = None
            return None
        # One that is being replaced just now, or that a slow file system still lists, is unknown.
        epoch = int(newest.name[6:])
        found = _read(newest)
        if found is None or found.epoch != epoch:
            found = Holder(epoch, UNKNOWN, -1, "", 0, "")
        if found != self._seen:
            self._seen, self._seen_s = found, time.monotonic()
        if found.beat < 0:
            return None
        if found.machine == this_machine() and _started(found.pid) != found.started:
            return None
        return found if time.monotonic() - self._seen_s < self._silent_s else None

    def forget(self) -> None:
        """Counts the silence of others anew: this process has not looked for a while itself."""
        self._seen_s = time.monotonic()

    def hold(self) -> bool:
        """Renews the lease, or takes it if nobody has it; returns whether this process leads."""
        holder = self.holder()
        if holder is not None and holder.epoch != self.epoch:
            self.epoch = 0
            return False
        if holder is None and not self._take():
            return False
        beat = self._seen.beat + 1 if self._seen else 1
        self._write(Holder(self.epoch, *self._mine, beat))
        return True

    def release(self) -> None:
        """Gives the lease up, if this process has it; its number stays."""
        if self.epoch and self._is_newest():
            self._write(Holder(self.epoch, *self._mine, -1))
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
        new = self._written(Holder(epoch, *self._mine))
        try:
            os.link(new, path)  # fails if it is there, and is never half
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
        found = (path for path in self._folder.glob("lease-*") if NAMED.fullmatch(path.name))
        return max(found, default=None)

    def _write(self, holder: Holder) -> None:
        self._written(holder).replace(self._folder / f"lease-{holder.epoch:06d}")

    def _written(self, holder: Holder) -> Path:
        new = self._folder / f".lease.{os.getpid()}"
        new.write_text(json_text(asdict(holder)))
        return new


def _read(path: Path) -> Holder | None:
    with contextlib.suppress(Malformed):
        return decode_record(read_bytes(path), Holder)
    return None


def _started(pid: int | None = None) -> str:
    """Returns when a process of this machine began, in ticks since boot; nothing if it is gone."""
    pid = os.getpid() if pid is None else pid
    if not alive(pid):
        return ""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    return ""
