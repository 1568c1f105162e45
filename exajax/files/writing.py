"""Atomic creation of files and folders, with the permissions that umask gives."""

import os
import secrets
from pathlib import Path


def new_path(path: Path) -> Path:
    """An unused hidden path next to `path`, for the file or folder that will be renamed to it."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}")


def new_folder_for(path: Path) -> Path:
    """A new, empty, hidden folder next to `path`, to be renamed to it once it is complete.

    `tempfile.mkdtemp` would make one that only its owner can read, also after renaming.

    Raises:
        OSError: the folder cannot be made.
    """
    folder = new_path(path)
    folder.mkdir()
    return folder


def grant_as_umask(file: Path) -> None:
    """Sets the permissions of a file to those that a plain `open` in its folder would give.

    safetensors writes through a temporary file, which only its owner can read.

    Raises:
        OSError: the folder cannot be written.
    """
    plain = new_path(file)
    descriptor = os.open(plain, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
    try:
        file.chmod(os.fstat(descriptor).st_mode & 0o777)
    finally:
        os.close(descriptor)
        plain.unlink()
