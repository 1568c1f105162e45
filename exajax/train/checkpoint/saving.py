"""Saving beside the training: the arrays are copied to the host, the rest is a thread's work.

What fails on one process fails on all of them, and leaves the checkpoints that were there as they
were. What is written, and where, is a `Part`: of the shared folder or of a local disk.
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
"""Time that a process has to write its part after the first one has."""


class Part(Protocol):
    """What this process does for a checkpoint. All is called in the thread of the save."""

    def copy(self, state: Any) -> None:
        """Copies the arrays to the host; when it returns they may be written over."""

    def write(self) -> Any:
        """Writes them, and returns what the first process is to know of it, as JSON."""

    def commit(self, reports: list[Any]) -> int:
        """Makes it a checkpoint, and returns its bytes; on the first process, once all wrote."""

    def clean(self, *, failed: bool) -> None:
        """Removes what there is no use for, once it is a checkpoint or will be none."""


@dataclass(frozen=True)
class Saved:
    """How a save ended.

    Attributes:
        step: of the checkpoint.
        tier: `shared` or `local`.
        seconds: from its begin until it was proven.
        stall_s: of these, until the state might be written over.
        size_bytes: of its files.
        problem: why there is no checkpoint; None if there is one.
    """

    step: int
    tier: str
    seconds: float
    stall_s: float
    size_bytes: int = 0
    problem: str | None = None


class Save:
    """One save, from its begin to its end in a thread of its own. Every process makes one.

    Args:
        step: updates that the state has seen.
        tier: `shared` or `local`.
        state: what to save; it must stay as it is until `copied` returns.
        part: what this process does.
        agreement: where the processes agree.
        topic: on what, one for each save.
        before_commit: called with the step when this process's part is written.
        ended: called at the end, in the thread.
        began_s: when the loop began to wait, by `time.monotonic`.
    """

    def __init__(
        self,
        step: int,
        tier: str,
        state: Any,
        part: Part,
        *,
        agreement: Agreement,
        topic: str,
        before_commit: Callable[[int], None],
        ended: Callable[[Saved], None],
        began_s: float,
    ) -> None:
        self.step, self.tier = step, tier
        self._part, self._agreement, self._topic = part, agreement, topic
        self._before_commit, self._ended, self._began_s = before_commit, ended, began_s
        self._copied = threading.Event()
        self._stall_s = 0.0
        self._result: Saved | None = None
        # A daemon: an end that does not wait for it, as after an error, is not to hang.
        self._thread = threading.Thread(
            target=self._run, args=(state,), name=f"save-{step}", daemon=True
        )
        self._thread.start()

    @property
    def running(self) -> bool:
        """Whether the thread still works."""
        return self._thread.is_alive()

    def copied(self) -> None:
        """Waits until the state may be written over."""
        self._copied.wait()

    def join(self, limit_s: float | None = None) -> None:
        """Waits for the end, no longer than a limit if there is one."""
        self._thread.join(limit_s)

    def wait(self) -> Saved:
        """Waits for the end, and returns how it was."""
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
            size_bytes = self._agreement.on(self._topic, report, self._commit, LIMIT_S)
        except Exception as error:
            problem = reason(error)
        try:
            self._part.clean(failed=problem is not None)
        finally:
            seconds = time.monotonic() - self._began_s
            self._result = Saved(self.step, self.tier, seconds, self._stall_s, size_bytes, problem)
            self._ended(self._result)

    def _write(self, state: Any) -> Any:
        self._part.copy(state)
        self._free()
        wrote = self._part.write()
        self._before_commit(self.step)
        return wrote

    def _free(self) -> None:
        """Lets the loop write over the state."""
        if not self._copied.is_set():
            self._stall_s = time.monotonic() - self._began_s
            self._copied.set()

    def _commit(self, reports: list[dict[str, Any]]) -> int:
        for process, report in enumerate(reports):
            if "problem" in report:
                where = f"process {process}: " if len(reports) > 1 else ""
                raise OSError(f"{where}{report['problem']}")
        return self._part.commit([report["wrote"] for report in reports])


class Lane:
    """The saves of one tier, one after the other.

    Args:
        tier: its name.
        agreement: where the processes agree.
    """

    def __init__(self, tier: str, agreement: Agreement) -> None:
        self._tier, self._agreement = tier, agreement
        self._turns = self._remembered = 0
        self.save: Save | None = None

    def turn(self, *, wait: bool) -> tuple[str, str | None]:
        """Returns the topic of the next save, and a word for it; None if one is still going on.

        Args:
            wait: whether to wait for the end of that one.
        """
        if wait and self.save:
            self.save.wait()
        self._turns += 1
        topic = f"{self._tier}-{self._turns}"

        def decide(busy: list[bool]) -> str | None:
            return None if any(busy) else secrets.token_hex(4)

        busy = self.save is not None and self.save.running
        token = self._agreement.on(f"{topic}/busy", busy, decide)
        if token:  # every process is through with all that was said before
            for turn in range(self._remembered, self._turns):
                self._agreement.forget(f"{self._tier}-{turn}")
            self._remembered = self._turns
        return topic, token


def reason(error: BaseException) -> str:
    """Returns an error on one line; of one that comes from the disk, what the disk said."""
    if number := disk_errno(error):
        process = re.match("process [0-9]+: ", str(error))
        return (process[0] if process else "") + os.strerror(number)
    text = " ".join(f"{type(error).__name__}: {error}".split())
    # Where it happened comes first, at length, and the cause last.
    return text if len(text) <= 500 else f"{text[:200]} ... {text[-295:]}"
