"""Checkpoints in the shared folder: written by Orbax, every process its part, for any mesh.

When the arrays are on the disk each process adds the checksums of the files that it wrote; the
first one adds its own, and renames the folder.
"""

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax

from exajax.spmd.step import TrainState, TrainStep
from exajax.train.checkpoint import checksums, orbax_arrays, stages
from exajax.train.checkpoint import folder as folders
from exajax.train.checkpoint.checksums import Sums
from exajax.train.checkpoint.manifest import Manifest
from exajax.train.checkpoint.saving import LIMIT_S


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

    def copy(self, state: TrainState) -> None:
        """Copies the arrays to the host; Orbax begins to write at once."""
        self._writing = orbax_arrays.Writing(self._saving / folders.STATE, state)

    def write(self) -> Sums:
        """Waits until Orbax has written; returns the checksums of this process's files."""
        if jax.process_index() == 0:  # what a failed save left may be what fills the disk
            folders.sweep(self._folder, but=self._saving)
        self._writing.wait(LIMIT_S)
        files = checksums.files_in(self._saving)
        mine = [file for file in files if orbax_arrays.owner(file) == jax.process_index()]
        return checksums.sums_of(self._saving, mine)

    def commit(self, reports: list[Sums]) -> int:
        """Makes a checkpoint of what all processes wrote."""
        self._writing.finish()
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


def read_state(checkpoint: Path, step: TrainStep, saved: Manifest) -> TrainState:
    """Returns the state of a checkpoint on the mesh of a step, whatever mesh it was saved on.

    Raises:
        ValueError, KeyError, TypeError, OSError: it cannot be read.
    """
    form = stages.as_saved(step.state, saved.arrays)
    return stages.regrouped(orbax_arrays.read(checkpoint / folders.STATE, form), step.state)
