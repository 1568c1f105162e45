"""The folder of checkpoints on disk: which are there, which of them are whole, which may go.

A checkpoint is written to `STEP.TOKEN.saving` and renamed once its checksums are in it, so that a
folder `STEP` is one that was whole. Damaged ones are kept in `damaged/`, all but the newest until
another checkpoint is proven.
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
"""Name of a checkpoint: its step as `str` writes it."""

BEFORE = f".before{REPLACED}"
"""Behind the step of a checkpoint whose place another one is taking."""


@dataclass(frozen=True)
class Found:
    """What a folder of checkpoints holds under one name.

    Attributes:
        step: updates that the state has seen.
        state: `proven`, `damaged` or `unfinished`.
        damage: what is wrong with it, empty unless it is damaged.
    """

    step: int
    state: str
    damage: tuple[Damage, ...] = ()


def steps_in(folder: Path) -> list[int]:
    """Returns the steps of the checkpoints in a folder, newest first; nothing is read of them."""
    names = (path.name for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else ()
    return sorted((int(name) for name in names if STEP.fullmatch(name)), reverse=True)


def verify(folder: Path) -> list[Found]:
    """Returns what a folder holds, newest first, once every byte of it was read and compared."""
    found = [Found(step, "unfinished") for step in _unfinished(folder).values()]
    for step in steps_in(folder):
        try:
            check(folder / str(step))
            found.append(Found(step, "proven"))
        except DamagedError as error:
            found.append(Found(step, "damaged", error.damages))
    return sorted(found, key=lambda entry: entry.step, reverse=True)


def check(checkpoint: Path, part: int = 0, parts: int = 1) -> None:
    """Compares the files of a checkpoint with their checksums.

    Args:
        checkpoint: its folder.
        part: number of the part of its files that is read.
        parts: parts that its files are dealt into, about equal in bytes.

    Raises:
        DamagedError: a file is not what was written.
    """
    sums = _sums_of(checkpoint)
    by_size = sorted(sums, key=lambda file: (-sums[file][0], file))
    _compare(checkpoint, by_size[part::parts], sums)


def check_notes(checkpoint: Path) -> None:
    """Compares manifest and facts of a checkpoint, which are read first, with their checksums.

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
    """Returns a name that no other folder of checkpoints has, and gives it where there is none."""
    path = folder / IDENTITY
    if not path.exists():
        checksums.write_text(path, secrets.token_hex(8))
    return path.read_text().strip()


def sweep(folder: Path, but: Path | None = None) -> None:
    """Removes what saves that never ended have left, but for that which is still going on."""
    for path, step in _unfinished(folder).items():
        if path.name.endswith(BEFORE) and not (folder / str(step)).exists():
            path.rename(folder / str(step))  # the one in its place never came
        elif path != but:
            shutil.rmtree(path, ignore_errors=True)


def commit(saving: Path, step: int, keep: int | None) -> None:
    """Makes a written folder the checkpoint of its step, and removes what it makes superfluous.

    Args:
        saving: the folder, its checksums in it.
        step: of the checkpoint.
        keep: how many of the newest stay; None is all. They are proven.
    """
    folder = saving.parent
    final = folder / str(step)
    if final.exists():  # the run went back behind it and has come again
        final.rename(folder / f"{step}{BEFORE}")
    saving.rename(final)
    checksums.sync_folder(folder)
    sweep(folder)
    for old in steps_in(folder)[keep:] if keep else ():
        _remove(folder / str(old))
    for old in steps_in(folder / DAMAGED)[1:]:
        _remove(folder / DAMAGED / str(old))


def set_aside(folder: Path, steps: Iterable[int]) -> None:
    """Moves damaged checkpoints to where nothing looks for them."""
    for step in steps:
        aside = folder / DAMAGED / str(step)
        aside.parent.mkdir(exist_ok=True)
        shutil.rmtree(aside, ignore_errors=True)
        (folder / str(step)).rename(aside)


def _remove(checkpoint: Path) -> None:
    """Removes a checkpoint; it is none from the first moment on."""
    going = checkpoint.with_name(f"{checkpoint.name}{REPLACED}")
    checkpoint.rename(going)
    shutil.rmtree(going, ignore_errors=True)


def _unfinished(folder: Path) -> dict[Path, int]:
    """Returns what saves have left in a folder, and of which steps."""
    found = {}
    for path in folder.iterdir() if folder.is_dir() else ():
        step = path.name.partition(".")[0]
        left = path.name.endswith((SAVING, REPLACED))
        if STEP.fullmatch(step) and left and path.is_dir():
            found[path] = int(step)
    return found
