"""Files and folders that appear complete or not at all, with the permissions that umask gives."""

import os
import secrets
from pathlib import Path


def new_path(path: Path) -> Path:
    """Returns a hidden name next to `path` that nothing has, for what will replace it."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}")


def new_folder_for(path: Path) -> Path:
    """Makes an empty hidden folder next to `path`, to be renamed to it once it is complete.

    `tempfile.mkdtemp` makes one for its owner alone, which the renamed folder would stay.

    Raises:
        OSError: it cannot be made.
    """
    folder = new_path(path)
    folder.mkdir()
    return folder


def grant_as_umask(file: Path) -> None:
    """Gives a file the permissions that a plain `open` there gives, whatever a library gave it.

    safetensors writes through a temporary file, which is for its owner alone.

    Raises:
        OSError: its folder cannot be written.
    """
    plain = new_path(file)
    descriptor = os.open(plain, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
    try:
        file.chmod(os.fstat(descriptor).st_mode & 0o777)
    finally:
        os.close(descriptor)
        plain.unlink()
