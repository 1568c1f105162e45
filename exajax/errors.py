"""The error types that commands print on one line: bad input, and a run that failed."""

import difflib
import errno
import os
from collections.abc import Iterable


class InputError(ValueError):
    """Unusable input from the user. Commands print it on one line and exit with code 2.

    Args:
        field: the option, file or field that is wrong (`mesh`); commands print an option as its
            flag.
        problem: what is wrong with it; options in it, and in `fix`, stand in backticks.
        fix: what to write instead, as an imperative.
    """

    def __init__(self, field: str, problem: str, fix: str) -> None:
        self.field, self.problem, self.fix = field, problem, fix
        super().__init__(" ".join(f"{field}: {problem}; {fix}".split()))


FAILED = 70
"""Exit code of a supervised process after `RunFailed`: restarting it would not help."""


class RunFailed(RuntimeError):  # noqa: N818 - reads as what happened
    """A run that could not finish. Commands print it on one line and exit with code 1."""


DISK_FIXES = {
    errno.ENOSPC: "make room",
    errno.EDQUOT: "make room, or ask for a larger quota",
    errno.EFBIG: "raise the limit on the size of files (ulimit -f)",
    errno.EROFS: "give a folder that can be written",
    errno.EMFILE: "raise the limit on open files (ulimit -n)",
    errno.ENFILE: "close files of other processes",
    errno.EIO: "check the disk",
    errno.ESTALE: "mount the file system again",
}
"""Remedy for each `errno` that a disk or a limit on files raises."""


def disk_errno(error: BaseException) -> int | None:
    """The `errno` of a disk or file-limit error; None for any other error.

    Libraries wrap such errors, and some preserve only the message: so the whole chain of causes is
    searched, for the number and for its message.
    """
    cause: BaseException | None = error
    while cause is not None:
        for number in DISK_FIXES:
            if getattr(cause, "errno", None) == number or os.strerror(number) in str(cause):
                return number
        cause = cause.__cause__ or cause.__context__
    return None


def disk_failure(error: BaseException) -> RunFailed | None:
    """The `RunFailed`, with a remedy, for a disk or file-limit error; None for any other error."""
    number = disk_errno(error)
    if number is None:
        return None
    what = " ".join(str(error).split())
    if isinstance(error, OSError) and error.filename:
        what = f"{error.filename}: {error.strerror}"
    elif len(what) > 300:
        what = os.strerror(number)
    return RunFailed(
        f"{what}; {DISK_FIXES[number]}, and give the same command again: what was saved "
        "before is kept"
    )


TRANSIENT_STATUSES = (
    "INTERNAL",
    "UNAVAILABLE",
    "DEADLINE_EXCEEDED",
    "ABORTED",
    "CANCELLED",
    "UNKNOWN",
)
"""Status codes of JAX runtime errors, their first word, that a restart may get past."""

PERMANENT_STATUSES = (
    "RESOURCE_EXHAUSTED",
    "INVALID_ARGUMENT",
    "UNIMPLEMENTED",
    "FAILED_PRECONDITION",
)
"""Status codes of JAX runtime errors that a restart on the same input is likely to meet again."""

PROGRAMMING_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    NameError,
    NotImplementedError,
    TypeError,
    ValueError,
)


def recurs(error: BaseException) -> bool:
    """Whether an error is deterministic, so that a restart would meet it again."""
    status = str(error).partition(":")[0]
    if status in PERMANENT_STATUSES:
        return True
    return isinstance(error, PROGRAMMING_ERRORS) and status not in TRANSIENT_STATUSES


def close_to(name: str, known: Iterable[str], cutoff: float = 0.6) -> str | None:
    """The known name most similar to `name`; None if the best similarity is below `cutoff`."""
    return next(iter(difflib.get_close_matches(name, sorted(known), n=1, cutoff=cutoff)), None)


def nearest(name: str, known: Iterable[str]) -> str:
    """A clause for an error's fix: the known name most similar to `name`, or all of them."""
    choices = sorted(known)
    close = close_to(name.lower(), choices)
    return f"did you mean {close!r}?" if close else f"choose one of {', '.join(choices)}"
