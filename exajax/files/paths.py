"""Paths that people give with a flag."""

import errno
import os
from pathlib import Path

from exajax.errors import InputError, disk_errno
from exajax.files.reading import shown_path


def given(path: str, field: str, fix: str) -> Path:
    """Returns the path of a file or folder that is there.

    Args:
        path: what a person wrote.
        field: the flag that it was written with.
        fix: what to write instead, as an imperative.

    Raises:
        InputError: it is empty or no path, nothing is there, or one may not look.
    """
    problem = _problem(path)
    if problem:
        raise InputError(field, problem, fix)
    return Path(path)


def is_there(path: str) -> bool:
    """Returns whether a path leads to a file or folder that one may look at."""
    return _problem(path) is None


def too_many_open(path: Path, field: str) -> InputError:
    """Returns the error of a process that may not open one more file.

    Args:
        path: the file that could not be opened.
        field: the flag that it was given with.
    """
    import resource

    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return InputError(
        field,
        f"cannot open {shown_path(path)}: this process may have {limit} files open at a time",
        "raise the limit, with ulimit -n 4096",
    )


def is_too_many_open(error: BaseException) -> bool:
    """Returns whether an error says that the process, or the machine, has too many files open."""
    return disk_errno(error) in (errno.EMFILE, errno.ENFILE)


def _problem(path: str) -> str | None:
    """Returns what is wrong with a path; None if something is there."""
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
