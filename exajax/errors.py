"""The error types that commands print on one line: bad input, and a run that failed."""

import difflib
import errno
import os
from collections.abc import Iterable


class InputError(ValueError):
    """What a user gave cannot be used. Commands print it on one line and exit with code 2.

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
"""Exit code of a supervised process after `RunFailed`: starting it again would not help."""


class RunFailed(RuntimeError):  # noqa: N818 - reads as what happened
    """A run ended for what happened in it. Commands print it on one line and exit with code 1."""


DISK_FIXES = {
    errno.ENOSPC: "make room",
    errno.EDQUOT: "make room, or ask for a larger quota",
    errno.EFBIG: "raise the limit on the size of files (ulimit -f)",
    errno.EROFS: "give a folder that can be written",
    errno.EMFILE: "raise the limit on open files (ulimit -n)",
    errno.ENFILE: "close files of other processes",
    errno.EIO: "look after the disk",
    errno.ESTALE: "mount the file system again",
}
"""What a person can do about errors of the disk and of file limits, by `errno`."""


def disk_errno(error: BaseException) -> int | None:
    """Returns the `errno` of an error of the disk or of file limits; None for any other error.

    Libraries wrap such errors, and some keep only their text: the error itself, and all that it was
    raised from, are searched for both.
    """
    cause: BaseException | None = error
    while cause is not None:
        for number in DISK_FIXES:
            if getattr(cause, "errno", None) == number or os.strerror(number) in str(cause):
                return number
        cause = cause.__cause__ or cause.__context__
    return None


def disk_failure(error: BaseException) -> RunFailed | None:
    """Returns a full or failing disk as a `RunFailed` with its fix; None for any other error."""
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


PASSING = ("INTERNAL", "UNAVAILABLE", "DEADLINE_EXCEEDED", "ABORTED", "CANCELLED", "UNKNOWN")
LASTING = ("RESOURCE_EXHAUSTED", "INVALID_ARGUMENT", "UNIMPLEMENTED", "FAILED_PRECONDITION")
"""How errors of JAX's runtime begin that another attempt may, and is not likely to, be spared."""

MISTAKES = (
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
    """Returns whether an error is deterministic: a restart would meet it again."""
    status = str(error).partition(":")[0]
    return status in LASTING or (isinstance(error, MISTAKES) and status not in PASSING)


def close_to(name: str, known: Iterable[str], cutoff: float = 0.6) -> str | None:
    """Returns the known name that a name is most like, None if it is like none."""
    return next(iter(difflib.get_close_matches(name, sorted(known), n=1, cutoff=cutoff)), None)


def nearest(name: str, known: Iterable[str]) -> str:
    """Returns a clause that names the closest known name, or lists them all."""
    choices = sorted(known)
    close = close_to(name.lower(), choices)
    return f"did you mean {close!r}?" if close else f"choose one of {', '.join(choices)}"
