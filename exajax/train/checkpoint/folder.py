"""The folder of checkpoints on disk: listing, verification, commit, and removal of old ones.

A checkpoint is written to `STEP.TOKEN.saving` and renamed once its checksums are in it, so that a
folder named `STEP` was complete. Damaged checkpoints are moved to `damaged/`, which keeps the
newest of them once another checkpoint is saved.
"""

import re
import secrets
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from exajax.train.checkpoint import checksums
from exajax.train.checkpoint.checksums import Damage, DamagedError, Sums

STATE = "state"
MANIFEST = "manifest.json"
ABOUT = "about.json"
DAMAGED = "damaged"
IDENTITY = "id"
SAVING = ".saving"
REPLACED = ".replaced"

STEP = re.compile("0|[1-9][0-9]{0,17}")
"""Name of a checkpoint's folder: its step, without leading zeros."""

BEFORE = f".before{REPLACED}"
"""Suffix of a checkpoint while another one of the same step takes its place."""


@dataclass(frozen=True)
class VerifiedCheckpoint:
    """One entry of a folder of checkpoints, after verification.

    Attributes:
        step: number of updates that made its state.
        state: `proven`, `damaged` or `unfinished`.
        damage: empty unless it is damaged.
    """

    step: int
    state: str
    damage: tuple[Damage, ...] = ()


def steps_in(folder: Path) -> list[int]:
    """The steps of the checkpoints in a folder, newest first, without reading their files."""
    names = (path.name for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else ()
    return sorted((int(name) for name in names if STEP.fullmatch(name)), reverse=True)


def verify(folder: Path) -> list[VerifiedCheckpoint]:
    """Verifies every byte of the checkpoints in a folder; the newest comes first."""
    entries = [VerifiedCheckpoint(step, "unfinished") for step in _unfinished(folder).values()]
    for step in steps_in(folder):
        try:
            check(folder / str(step))
            entries.append(VerifiedCheckpoint(step, "proven"))
        except DamagedError as error:
            entries.append(VerifiedCheckpoint(step, "damaged", error.damages))
    return sorted(entries, key=lambda entry: entry.step, reverse=True)


def check(checkpoint: Path, part: int = 0, parts: int = 1) -> None:
    """Compares the files of a checkpoint with their checksums.

    Args:
        checkpoint: its folder.
        part: index of the share of its files to compare.
        parts: number of shares, about equal in bytes.

    Raises:
        DamagedError: a file is not what was written.
    """
    sums = _sums_of(checkpoint)
    by_size = sorted(sums, key=lambda file: (-sums[file][0], file))
    _compare(checkpoint, by_size[part::parts], sums)


def check_notes(checkpoint: Path) -> None:
    """Compares the manifest and the facts of a checkpoint with their checksums.

    Raises:
        DamagedError: one of them is not what was written.
    """
    _compare(checkpoint, [MANIFEST, ABOUT], _sums_of(checkpoint))


def _compare(checkpoint: Path, files: Iterable[str], sums: Sums) -> None:
    damages = checksums.damage_of(checkpoint, files, sums)
    if damages:
        raise DamagedError(damages)


def _sums_of(checkpoint: Path) -> Sums:
    try:
        sums = checksums.read(checkpoint)
    except FileNotFoundError:
        problem = "is missing: not proven, as an earlier version made them"
    except (OSError, ValueError) as error:
        problem = str(error)
    else:
        missing = {MANIFEST, ABOUT} - set(sums)
        if not missing:
            return sums
        problem = f"does not know {min(missing)}"
    raise DamagedError([Damage(checksums.NAME, problem)])


def identity(folder: Path) -> str:
    """A random name that is unique to a folder of checkpoints, created at the first call."""
    path = folder / IDENTITY
    if not path.exists():
        checksums.write_text(path, secrets.token_hex(8))
    return path.read_text().strip()


def sweep(folder: Path, but: Path | None = None) -> None:
    """Removes unfinished saves, except the folder `but` of the save in progress."""
    for path, step in _unfinished(folder).items():
        if path.name.endswith(BEFORE) and not (folder / str(step)).exists():
            path.rename(folder / str(step))  # the checkpoint to take its place was never renamed
        elif path != but:
            shutil.rmtree(path, ignore_errors=True)


def commit(saving: Path, step: int, keep: int | None) -> None:
    """Makes a written folder the checkpoint of its step, and removes older checkpoints.

    Args:
        saving: the folder, with its checksums.
        step: of the checkpoint.
        keep: number of the newest checkpoints to keep; None keeps all.
    """
    folder = saving.parent
    final = folder / str(step)
    if final.exists():  # the run was rolled back, and has reached the step again
        final.rename(folder / f"{step}{BEFORE}")
    saving.rename(final)
    checksums.sync_folder(folder)
    sweep(folder)
    for old in steps_in(folder)[keep:] if keep else ():
        _remove(folder / str(old))
    for old in steps_in(folder / DAMAGED)[1:]:
        _remove(folder / DAMAGED / str(old))


def set_aside(folder: Path, steps: Iterable[int]) -> None:
    """Moves damaged checkpoints to the folder `damaged`."""
    for step in steps:
        aside = folder / DAMAGED / str(step)
        aside.parent.mkdir(exist_ok=True)
        shutil.rmtree(aside, ignore_errors=True)
        (folder / str(step)).rename(aside)


def _remove(checkpoint: Path) -> None:
    """Removes a checkpoint; the rename makes it invisible at once."""
    renamed = checkpoint.with_name(f"{checkpoint.name}{REPLACED}")
    checkpoint.rename(renamed)
    shutil.rmtree(renamed, ignore_errors=True)


def _unfinished(folder: Path) -> dict[Path, int]:
    """Folders of unfinished saves, with their steps."""
    steps = {}
    for path in folder.iterdir() if folder.is_dir() else ():
        step = path.name.partition(".")[0]
        temporary = path.name.endswith((SAVING, REPLACED))
        if STEP.fullmatch(step) and temporary and path.is_dir():
            steps[path] = int(step)
    return steps
