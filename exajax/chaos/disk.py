"""Damage to what a job has on disk: checkpoints with other bytes, and a disk without room."""

import contextlib
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np

from exajax.chaos.faults import Fault
from exajax.train.checkpoint.folder import SAVING, steps_in

FILLER = ".filler"


def proven(checkpoints: Path) -> list[Path]:
    """Returns the checkpoints that are whole, the newest last."""
    return [checkpoints / str(step) for step in reversed(steps_in(checkpoints))]


def committing(checkpoints: Path) -> bool:
    """Returns whether a checkpoint is being written, or what is left of one that was."""
    with contextlib.suppress(OSError):
        return any(path.name.endswith(SAVING) for path in checkpoints.iterdir())
    return False


def damage(fault: Fault, checkpoint: Path) -> dict[str, object]:
    """Cuts a file of a checkpoint short, or flips bits of it; returns what was done, as JSON.

    Every byte of the checkpoint is equally likely to be hit; which one follows from the fault.
    """
    draw = np.random.default_rng(fault.id)
    files = sorted(path for path in checkpoint.rglob("*") if path.is_file() and path.stat().st_size)
    sizes = np.array([path.stat().st_size for path in files], float)
    path = files[int(draw.choice(len(files), p=sizes / sizes.sum()))]
    size = path.stat().st_size
    facts: dict[str, object] = {
        "step": int(checkpoint.name),
        "file": str(path.relative_to(checkpoint)),
        "bytes": size,
    }
    if fault.kind == "truncate":
        kept = min(int(size * (1 - fault.detail("share"))), size - 1)
        os.truncate(path, kept)
        return facts | {"kept_bytes": kept}
    bits = [int(bit) for bit in draw.integers(8 * size, size=int(fault.detail("bits")))]
    with path.open("r+b") as file:
        for bit in bits:
            file.seek(bit // 8)
            byte = file.read(1)[0]
            file.seek(bit // 8)
            file.write(bytes([byte ^ 1 << bit % 8]))
    return facts | {"bits": bits}


def mount_small(folder: Path, size_bytes: int) -> None:
    """Lays a folder on a small disk of its own, which ends with this mount namespace."""
    folder.mkdir(parents=True, exist_ok=True)
    options = f"size={size_bytes}"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "exajax", folder], check=True)


def unmount_kept(folder: Path) -> None:
    """Takes a folder off its small disk; what lies in it stays."""
    beside = folder.with_name(f".{folder.name}.kept")
    shutil.copytree(folder, beside, symlinks=True)
    subprocess.run(["umount", folder], check=True)
    folder.rmdir()
    beside.replace(folder)


def fill(folder: Path) -> Path:
    """Takes all the room of the disk that a folder is on; returns the file that has it."""
    path = folder / FILLER
    with path.open("wb", buffering=0) as file:
        with contextlib.suppress(OSError):
            disk = os.fstatvfs(file.fileno())
            os.posix_fallocate(file.fileno(), 0, disk.f_bavail * disk.f_frsize)
        file.seek(0, os.SEEK_END)
        with contextlib.suppress(OSError):  # until nothing goes in any more
            while file.write(bytes(4096)):
                pass
    return path
