"""Checks on paths that come from the user."""

import errno
import os
from pathlib import Path

from exajax.errors import InputError, disk_errno
from exajax.files.reading import shown_path


def existing_path(path: str, field: str, fix: str) -> Path:
    """The path of a file or folder, which is checked to exist.

    Args:
        path: the path as the user wrote it.
        field: the option that it was given for.
        fix: what to write instead, as an imperative.

    Raises:
        InputError: the path is empty or malformed, does not exist, or may not be looked at.
    """
    problem = _problem(path)
    if problem:
        raise InputError(field, problem, fix)
    return Path(path)


def exists(path: str) -> bool:
    """Whether a path leads to a file or folder that this process may look at."""
    return _problem(path) is None


def too_many_open(path: Path, field: str) -> InputError:
    """The error for a process that has reached its limit on open files.

    Args:
        path: the file that could not be opened.
        field: the option that it was given for.
    """
    import resource

    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return InputError(
        field,
        f"cannot open {shown_path(path)}: this process may have {limit} files open at a time",
        "raise the limit, with ulimit -n 4096",
    )


def is_too_many_open(error: BaseException) -> bool:
    """Whether an error says that the process, or the machine, has too many files open."""
    return disk_errno(error) in (errno.EMFILE, errno.ENFILE)


def _problem(path: str) -> str | None:
    """The reason why a path cannot be used; None for a file or folder that exists."""
    if not path:
        return "it is empty"
    name = shown_path(Path(path))
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return f"{name} does not exist"
    except OSError as error:
        return f"cannot look at {name}: {error.strerror}"
    except ValueError:  # a NUL character, or half of a surrogate pair
        return f"{name} is no path"
    return None
