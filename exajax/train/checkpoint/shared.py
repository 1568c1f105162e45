"""Checkpoints in the shared folder, written by Orbax and restorable onto any mesh.

Each process writes its shards and computes the checksums of its files; the first process collects
the checksums, and renames the folder.
"""

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax

from exajax.spmd.step import TrainState, TrainStep
from exajax.train.checkpoint import checksums, orbax_arrays, regrouping
from exajax.train.checkpoint.checksums import Sums
from exajax.train.checkpoint.folder import SAVING, STATE, commit, sweep
from exajax.train.checkpoint.manifest import Manifest
from exajax.train.checkpoint.saving import LIMIT_S


class SharedPart:
    """This process's part of a checkpoint in the shared folder.

    Args:
        folder: folder of the checkpoints.
        step: number of updates that made the state.
        token: distinguishes this save from an unfinished one of the same step.
        notes: returns further files of the checkpoint by name, as JSON; called at the commit.
        keep: number of checkpoints to keep; None keeps all.
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
        self._saving = folder / f"{step}.{token}{SAVING}"

    def copy(self, state: TrainState) -> None:
        """Copies the arrays to the host, and starts Orbax's writes."""
        self._writing = orbax_arrays.Writing(self._saving / STATE, state)

    def write(self) -> Sums:
        """Waits until Orbax has written; returns the checksums of this process's files."""
        if jax.process_index() == 0:  # unfinished saves may be what fills the disk
            sweep(self._folder, but=self._saving)
        self._writing.wait(LIMIT_S)
        files = checksums.files_in(self._saving)
        owned = [file for file in files if orbax_arrays.owner(file) == jax.process_index()]
        return checksums.sums_of(self._saving, owned)

    def commit(self, reports: list[Sums]) -> int:
        """Collects the checksums of all processes, and makes the folder a checkpoint."""
        self._writing.finish()
        for name, content in self._notes().items():
            checksums.write_json(self._saving / name, content)
        sums = {file: entry for report in reports for file, entry in report.items()}
        rest = [file for file in checksums.files_in(self._saving) if file not in sums]
        sums |= checksums.sums_of(self._saving, rest)
        checksums.write(self._saving, sums)
        commit(self._saving, self._step, self._keep)
        return sum(size for size, _ in sums.values())

    def clean(self, *, failed: bool) -> None:
        """Removes the files of a failed save."""
        if failed and jax.process_index() == 0:
            shutil.rmtree(self._saving, ignore_errors=True)


def read_state(checkpoint: Path, step: TrainStep, saved: Manifest) -> TrainState:
    """The state in a checkpoint on the mesh of a step, whatever mesh it was saved on.

    Raises:
        ValueError, KeyError, TypeError, OSError: it cannot be read.
    """
    form = regrouping.as_saved(step.state, saved.arrays)
    return regrouping.regrouped(orbax_arrays.read(checkpoint / STATE, form), step.state)
