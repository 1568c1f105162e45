"""Faults of storage: damaged checkpoint files, and a full disk."""

import contextlib
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np

from exajax.chaos.faults import Fault
from exajax.train.checkpoint.folder import SAVING, steps_in

FILLER = ".filler"


def complete_checkpoints(checkpoints: Path) -> list[Path]:
    """The folders of finished checkpoints, the newest last."""
    return [checkpoints / str(step) for step in reversed(steps_in(checkpoints))]


def save_in_progress(checkpoints: Path) -> bool:
    """Whether an unfinished checkpoint exists: one is being saved, or its save was killed."""
    with contextlib.suppress(OSError):
        return any(path.name.endswith(SAVING) for path in checkpoints.iterdir())
    return False


def damage(fault: Fault, checkpoint: Path) -> dict[str, object]:
    """Truncates a file of a checkpoint, or flips bits of it.

    Every byte of the checkpoint is equally likely to be hit; the fault's number is the seed.

    Returns:
        What was damaged, as JSON.
    """
    generator = np.random.default_rng(fault.id)
    files = sorted(path for path in checkpoint.rglob("*") if path.is_file() and path.stat().st_size)
    sizes = np.array([path.stat().st_size for path in files], float)
    path = files[int(generator.choice(len(files), p=sizes / sizes.sum()))]
    size = path.stat().st_size
    facts: dict[str, object] = {
        "step": int(checkpoint.name),
        "file": str(path.relative_to(checkpoint)),
        "bytes": size,
    }
    if fault.kind == "truncate":
        left = min(int(size * (1 - fault.detail("share"))), size - 1)
        os.truncate(path, left)
        return facts | {"kept_bytes": left}
    bits = [int(bit) for bit in generator.integers(8 * size, size=int(fault.detail("bits")))]
    with path.open("r+b") as file:
        for bit in bits:
            file.seek(bit // 8)
            byte = file.read(1)[0]
            file.seek(bit // 8)
            file.write(bytes([byte ^ 1 << bit % 8]))
    return facts | {"bits": bits}


def mount_tmpfs(folder: Path, size_bytes: int) -> None:
    """Mounts a small tmpfs on a folder; it ends with this mount namespace."""
    folder.mkdir(parents=True, exist_ok=True)
    options = f"size={size_bytes}"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "exajax", folder], check=True)


def unmount_and_keep(folder: Path) -> None:
    """Unmounts the tmpfs of a folder, and leaves its files in the folder."""
    copy = folder.with_name(f".{folder.name}.kept")
    shutil.copytree(folder, copy, symlinks=True)
    subprocess.run(["umount", folder], check=True)
    folder.rmdir()
    copy.replace(folder)


def fill(folder: Path) -> Path:
    """Fills the disk that a folder is on; returns the file that fills it."""
    path = folder / FILLER
    with path.open("wb", buffering=0) as file:
        with contextlib.suppress(OSError):
            disk = os.fstatvfs(file.fileno())
            os.posix_fallocate(file.fileno(), 0, disk.f_bavail * disk.f_frsize)
        file.seek(0, os.SEEK_END)
        with contextlib.suppress(OSError):  # ends with ENOSPC
            while file.write(bytes(4096)):
                pass
    return path
