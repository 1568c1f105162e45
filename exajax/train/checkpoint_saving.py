"""Saving beside the training: the arrays are copied to the host, the rest is a thread's work.

Orbax writes the arrays, every process its own. When they are on the disk each process adds the
checksums of what it wrote, the first one adds its own and renames the folder. What fails on one
process fails on all, and leaves the checkpoints that were there as they were.
"""

import asyncio
import shutil
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath

from exajax.train import checkpoint_folder as folders
from exajax.train import checksums
from exajax.train.agreement import Agreement
from exajax.train.checksums import Sums

LIMIT_S = 1800.0
"""Time that a process has to write its part after the first one has."""

OWNED = "process_"
"""Orbax puts what process N writes under a name that ends so, with N."""


@dataclass(frozen=True)
class Saved:
    """How a save ended.

    Attributes:
        step: of the checkpoint.
        seconds: from its begin until it was proven.
        stall_s: of these, until the state might be written over.
        size_bytes: of its files.
        problem: why there is no checkpoint; None if there is one.
    """

    step: int
    seconds: float
    stall_s: float
    size_bytes: int = 0
    problem: str | None = None


def handler() -> ocp.PyTreeCheckpointHandler:
    """Returns what writes and reads the arrays: OCDBT without compression.

    zstd, Orbax's default, saves 8% of the bytes of random fp32 and takes four times as long.
    """
    return ocp.PyTreeCheckpointHandler(use_compression=False)


def read_arrays(checkpoint: Path, described: Any, *, partial: bool = False) -> Any:
    """Returns arrays of a checkpoint in the types and shardings of `described`.

    Args:
        checkpoint: its folder.
        described: a tree of shapes, types and shardings.
        partial: whether the checkpoint may hold more than that.

    Raises:
        ValueError, KeyError, TypeError, OSError: they are not there, or damaged.
    """
    wanted = ocp.args.PyTreeRestore(
        item=described,
        restore_args=ocp.checkpoint_utils.construct_restore_args(described),
        partial_restore=partial,
    )
    return handler().restore(epath.Path(checkpoint.absolute() / folders.STATE), args=wanted)


class Save:
    """One save, from its begin to its end in a thread of its own. Every process makes one.

    Args:
        step: updates that the state has seen.
        folder: of the checkpoints.
        state: what to save; it must stay as it is until `copied` returns.
        notes: called in the thread of the first process, returns further files of the checkpoint
            by name, as JSON.
        agreement: where the processes agree.
        topic: on what, one for each save.
        keep: how many checkpoints stay.
        before_commit: called with the step when this process's files are written.
        ended: called at the end, in the thread.
        began_s: when the loop began to wait, by `time.monotonic`.
    """

    def __init__(
        self,
        step: int,
        folder: Path,
        state: Any,
        notes: Callable[[], Mapping[str, Any]],
        *,
        agreement: Agreement,
        topic: str,
        keep: int,
        before_commit: Callable[[int], None],
        ended: Callable[[Saved], None],
        began_s: float,
    ) -> None:
        self.step, self.topic = step, topic
        self._folder, self._keep = folder, keep
        self._saving = folder / f"{step}{folders.SAVING}"
        self._agreement, self._before_commit = agreement, before_commit
        self._began_s = began_s
        self._stall_s = 0.0
        self._arrays = handler()
        self._copied = threading.Event()
        self.result: Saved | None = None
        # A daemon: an end that does not wait for it, as after an error, is not to hang.
        self._thread = threading.Thread(
            target=self._run, args=(state, notes, ended), name=f"save-{step}", daemon=True
        )
        self._thread.start()

    @property
    def running(self) -> bool:
        """Whether the thread still works."""
        return self._thread.is_alive()

    def copied(self) -> None:
        """Waits until the state may be written over."""
        self._copied.wait()

    def wait(self) -> Saved:
        """Waits for the end."""
        self._thread.join()
        assert self.result
        return self.result

    def _run(
        self, state: Any, notes: Callable[[], Mapping[str, Any]], ended: Callable[[Saved], None]
    ) -> None:
        first = jax.process_index() == 0
        try:
            report: dict[str, Any] = {"sums": self._write(state)}
        except Exception as error:
            report = {"problem": _reason(error)}
        finally:
            self._free()
        size_bytes, problem = 0, None
        try:
            size_bytes = self._agreement.on(
                self.topic, report, lambda reports: self._commit(reports, notes()), LIMIT_S
            )
        except Exception as error:
            problem = _reason(error)
            if first:
                shutil.rmtree(self._saving, ignore_errors=True)
        seconds = time.monotonic() - self._began_s
        self.result = Saved(self.step, seconds, self._stall_s, size_bytes, problem)
        ended(self.result)

    def _free(self) -> None:
        """Lets the loop write over the state."""
        if not self._copied.is_set():
            self._stall_s = time.monotonic() - self._began_s
            self._copied.set()

    def _write(self, state: Any) -> Sums:
        """Writes this process's part; returns the checksums of its files."""
        where = epath.Path(self._saving.absolute() / folders.STATE)
        writes = asyncio.run(self._arrays.async_save(where, args=ocp.args.PyTreeSave(state)))
        self._free()
        if jax.process_index() == 0:  # what a failed save left may be what fills the disk
            folders.sweep(self._folder, but=self._saving)
        for write in writes or ():
            write.result(timeout=LIMIT_S)
        me = jax.process_index()
        files = checksums.files_in(self._saving)
        sums = checksums.sums_of(self._saving, [file for file in files if _owner(file) == me])
        self._before_commit(self.step)
        return sums

    def _commit(self, reports: list[dict[str, Any]], notes: Mapping[str, Any]) -> int:
        """Makes a checkpoint of what all processes wrote; returns its bytes."""
        for process, report in enumerate(reports):
            if "problem" in report:
                raise OSError(f"process {process}: {report['problem']}")
        self._arrays.finalize(epath.Path(self._saving.absolute() / folders.STATE))
        for name, content in notes.items():
            checksums.write_json(self._saving / name, content)
        sums = {file: entry for report in reports for file, entry in report["sums"].items()}
        rest = [file for file in checksums.files_in(self._saving) if file not in sums]
        sums |= checksums.sums_of(self._saving, rest)
        checksums.write(self._saving, sums)
        folders.commit(self._saving, self.step, self._keep)
        return sum(size for size, _ in sums.values())


def _owner(file: str) -> int | None:
    """Returns the process that alone writes a file of Orbax; None if it is of all of them."""
    for part in Path(file).parts:
        number = part.rpartition(OWNED)[2]
        if OWNED in part and number.isdecimal():
            return int(number)
    return None


def _reason(error: BaseException) -> str:
    """Returns an error on one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:500]
