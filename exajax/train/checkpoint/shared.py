"""Checkpoints in the shared folder: written by Orbax, every process its part, for any mesh.

When the arrays are on the disk each process adds the checksums of the files that it wrote; the
first one adds its own, and renames the folder.
"""

import asyncio
import logging
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath

from exajax.errors import disk_errno
from exajax.spmd.step import TrainState, TrainStep
from exajax.train.checkpoint import checksums, stages
from exajax.train.checkpoint import folder as folders
from exajax.train.checkpoint.checksums import Sums
from exajax.train.checkpoint.manifest import Manifest
from exajax.train.checkpoint.saving import LIMIT_S

FILE_BYTES = 256 * 2**20
"""Size of a data file of Orbax: several threads sum several files at a time."""

OWNED = "process_"
"""Orbax puts what process N writes under a name that ends so, with N."""


class _Reported(logging.Filter):
    """Keeps out of the log what Orbax and its threads say of a failed save: the save reports it."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Returns whether a record is of something else than the disk."""
        error = record.exc_info[1] if record.exc_info else None
        return error is None or disk_errno(error) is None


def quiet() -> None:
    """Leaves it to the save to say why it failed, which Orbax's threads say dozens of times."""
    if getattr(sys.unraisablehook, "__module__", "") == __name__:
        return
    for name in ("absl", "asyncio"):
        logging.getLogger(name).addFilter(_Reported())
    before = sys.unraisablehook

    def hook(unraisable: "sys.UnraisableHookArgs") -> None:
        # TensorStore's writes end after the loop that waited for the first one to fail.
        if str(unraisable.exc_value) != "Event loop is closed":
            before(unraisable)

    sys.unraisablehook = hook


def handler() -> ocp.PyTreeCheckpointHandler:
    """Returns what writes and reads the arrays: OCDBT without compression.

    zstd, Orbax's default, saves 8% of the bytes of random fp32 and takes four times as long
    (measured: 1 GiB in 3.9 s against 1.0 s, on 2 cores).
    """
    return ocp.PyTreeCheckpointHandler(use_compression=False)


class SharedPart:
    """What this process writes of a checkpoint in the shared folder.

    Args:
        folder: of the checkpoints.
        step: updates that the state has seen.
        token: what tells this save from one of the same step that was left behind.
        notes: returns further files of the checkpoint by name, as JSON; called at the commit.
        keep: how many checkpoints stay; None is all.
    """

    def __init__(
        self,
        folder: Path,
        step: int,
        token: str,
        notes: Callable[[], Mapping[str, Any]],
        keep: int | None,
    ) -> None:
        self._folder, self._step, self._notes, self._keep = folder, step, notes, keep
        self._saving = folder / f"{step}.{token}{folders.SAVING}"
        self._arrays = epath.Path(self._saving / folders.STATE)
        self._handler = handler()
        quiet()

    def copy(self, state: TrainState) -> None:
        """Copies the arrays to the host; Orbax begins to write at once."""
        args = ocp.args.PyTreeSave(state, ocdbt_target_data_file_size=FILE_BYTES)
        saving = self._handler.async_save(self._arrays, args=args)
        self._writes = asyncio.run(saving) or []

    def write(self) -> Sums:
        """Waits until Orbax has written; returns the checksums of this process's files."""
        if jax.process_index() == 0:  # what a failed save left may be what fills the disk
            folders.sweep(self._folder, but=self._saving)
        for write in self._writes:
            write.result(timeout=LIMIT_S)
        files = checksums.files_in(self._saving)
        mine = [file for file in files if _owner(file) == jax.process_index()]
        return checksums.sums_of(self._saving, mine)

    def commit(self, reports: list[Sums]) -> int:
        """Makes a checkpoint of what all processes wrote."""
        self._handler.finalize(self._arrays)
        for name, content in self._notes().items():
            checksums.write_json(self._saving / name, content)
        sums = {file: entry for report in reports for file, entry in report.items()}
        rest = [file for file in checksums.files_in(self._saving) if file not in sums]
        sums |= checksums.sums_of(self._saving, rest)
        checksums.write(self._saving, sums)
        folders.commit(self._saving, self._step, self._keep)
        return sum(size for size, _ in sums.values())

    def clean(self, *, failed: bool) -> None:
        """Removes what a save that failed has written."""
        if failed and jax.process_index() == 0:
            shutil.rmtree(self._saving, ignore_errors=True)


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
    try:
        return handler().restore(epath.Path(checkpoint.absolute() / folders.STATE), args=wanted)
    except (jax.errors.JaxRuntimeError, MemoryError, OSError):  # of this machine, not of the files
        raise
    except Exception as error:  # Orbax raises `Exception` itself, its JSON a `RecursionError`
        raise ValueError(f"{type(error).__name__}: {error}") from error


def read_state(checkpoint: Path, step: TrainStep, saved: Manifest) -> TrainState:
    """Returns the state of a checkpoint on the mesh of a step, whatever mesh it was saved on.

    Raises:
        ValueError, KeyError, TypeError, OSError: it cannot be read.
    """
    form = stages.as_saved(step.state, saved.arrays)
    return stages.regrouped(read_arrays(checkpoint, form), step.state)


def _owner(file: str) -> int | None:
    """Returns the process that alone writes a file of Orbax; None if it is of all of them."""
    for part in Path(file).parts:
        number = part.rpartition(OWNED)[2]
        if OWNED in part and number.isdecimal():
            return int(number)
    return None
