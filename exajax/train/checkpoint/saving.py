"""Asynchronous saves: training waits for the copy to the host, a thread writes and commits.

A save that fails on one process fails on all of them, and leaves earlier checkpoints unchanged.
What is written, and where, is a `SavePart`: of the shared folder or of a local disk.
"""

import os
import re
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from exajax.errors import disk_errno
from exajax.train.checkpoint.agreement import Agreement

LIMIT_S = 1800.0
"""Seconds that a process has to write its part after the first one has."""


class SavePart(Protocol):
    """This process's part of a checkpoint. Its methods are called in the thread of the save."""

    def copy(self, state: Any) -> None:
        """Copies the arrays to the host; when it returns they may be overwritten."""

    def write(self) -> Any:
        """Writes the arrays, and returns a report for the first process, as JSON."""

    def commit(self, reports: list[Any]) -> int:
        """Makes it a checkpoint, and returns its bytes; on the first process, once all wrote."""

    def clean(self, *, failed: bool) -> None:
        """Removes temporary files and superseded checkpoints, after success or failure."""


@dataclass(frozen=True)
class SaveResult:
    """The result of a save.

    Attributes:
        step: of the checkpoint.
        tier: `shared` or `local`.
        seconds: from the begin of the save to its end.
        stall_s: the part of these seconds that training waited.
        size_bytes: bytes of its files.
        problem: why there is no checkpoint; None after success.
    """

    step: int
    tier: str
    seconds: float
    stall_s: float
    size_bytes: int = 0
    problem: str | None = None


@dataclass(frozen=True)
class SaveStart:
    """Which save a process starts, and since when training waits for it.

    Attributes:
        step: number of updates that made the state.
        tier: `shared` or `local`.
        topic: topic to agree on with the other processes, one for each save.
        began_s: when training began to wait, by `time.monotonic`.
    """

    step: int
    tier: str
    topic: str
    began_s: float


class Save:
    """One save, in a thread of its own. Every process makes one.

    Args:
        start: which save it is.
        state: the state to save, which must not change until `copied` returns.
        part: this process's part.
        agreement: of the processes.
        before_commit: called with the step when this process's part is written.
        ended: called with the result, in the thread.
    """

    def __init__(
        self,
        start: SaveStart,
        state: Any,
        part: SavePart,
        *,
        agreement: Agreement,
        before_commit: Callable[[int], None],
        ended: Callable[[SaveResult], None],
    ) -> None:
        self._start, self._part, self._agreement = start, part, agreement
        self._before_commit, self._ended = before_commit, ended
        self._copied = threading.Event()
        self._stall_s = 0.0
        self._result: SaveResult | None = None
        # A daemon thread, so that the process can exit without it after an error.
        self._thread = threading.Thread(
            target=self._run, args=(state,), name=f"save-{start.step}", daemon=True
        )
        self._thread.start()

    @property
    def running(self) -> bool:
        """Whether the thread still runs."""
        return self._thread.is_alive()

    def copied(self) -> None:
        """Waits until the state may be overwritten."""
        self._copied.wait()

    def join(self, limit_s: float | None = None) -> None:
        """Waits for the end, no longer than a limit if there is one."""
        self._thread.join(limit_s)

    def wait(self) -> SaveResult:
        """Waits for the end, and returns the result."""
        self.join()
        assert self._result
        return self._result

    def _run(self, state: Any) -> None:
        size_bytes, problem = 0, None
        try:
            report = {"wrote": self._write(state)}
        except Exception as error:
            report = {"problem": reason(error)}
        finally:
            self._free()
        try:
            size_bytes = self._agreement.on(self._start.topic, report, self._commit, LIMIT_S)
        except Exception as error:
            problem = reason(error)
        try:
            self._part.clean(failed=problem is not None)
        finally:
            seconds = time.monotonic() - self._start.began_s
            self._result = SaveResult(
                self._start.step, self._start.tier, seconds, self._stall_s, size_bytes, problem
            )
            self._ended(self._result)

    def _write(self, state: Any) -> Any:
        self._part.copy(state)
        self._free()
        wrote = self._part.write()
        self._before_commit(self._start.step)
        return wrote

    def _free(self) -> None:
        """Lets training overwrite the state."""
        if not self._copied.is_set():
            self._stall_s = time.monotonic() - self._start.began_s
            self._copied.set()

    def _commit(self, reports: list[dict[str, Any]]) -> int:
        for process, report in enumerate(reports):
            if "problem" in report:
                where = f"process {process}: " if len(reports) > 1 else ""
                raise OSError(f"{where}{report['problem']}")
        return self._part.commit([report["wrote"] for report in reports])


class TierSaves:
    """The saves of one tier, of which one at a time is in progress.

    Attributes:
        save: the save in progress, or the last one.

    Args:
        tier: `shared` or `local`.
        agreement: of the processes.
    """

    def __init__(self, tier: str, agreement: Agreement) -> None:
        self._tier, self._agreement = tier, agreement
        self._count = self._forgotten = 0
        self.save: Save | None = None

    def begin(self, *, wait: bool) -> tuple[str, str | None]:
        """The topic of the next save and a unique token for it, None if another is in progress.

        Args:
            wait: whether to wait for the save in progress first.
        """
        if wait and self.save:
            self.save.wait()
        self._count += 1
        topic = f"{self._tier}-{self._count}"

        def decide(busy: list[bool]) -> str | None:
            return None if any(busy) else secrets.token_hex(4)

        busy = self.save is not None and self.save.running
        token = self._agreement.on(f"{topic}/busy", busy, decide)
        if token:  # no process is busy, so that none asks for the reports of earlier saves
            for number in range(self._forgotten, self._count):
                self._agreement.forget(f"{self._tier}-{number}")
            self._forgotten = self._count
        return topic, token


def reason(error: BaseException) -> str:
    """An error on one line; of one that comes from the disk, the system's message."""
    if number := disk_errno(error):
        process = re.match("process [0-9]+: ", str(error))
        return (process[0] if process else "") + os.strerror(number)
    text = " ".join(f"{type(error).__name__}: {error}".split())
    # Orbax's messages begin with the place, at length, and end with the cause.
    return text if len(text) <= 500 else f"{text[:200]} ... {text[-295:]}"
