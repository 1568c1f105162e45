"""The error types that commands print on one line: bad input, and a run that failed."""

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """What a user gave cannot be used. Commands print it on one line and exit with code 2.

    Args:
        field: the flag, file or field that is wrong, as the user wrote it (`--mesh`).
        problem: what is wrong with it.
        fix: what to write instead, as an imperative.
    """

    def __init__(self, field: str, problem: str, fix: str) -> None:
        self.field, self.problem, self.fix = field, problem, fix
        super().__init__(" ".join(f"{field}: {problem}; {fix}".split()))


FAILED = 70
"""Exit code of a supervised process after `RunFailed`: starting it again would not help."""


class RunFailed(RuntimeError):  # noqa: N818 - reads as what happened
    """A run ended for what happened in it. Commands print it on one line and exit with code 1."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Returns a clause that names the closest known name, or lists them all."""
    choices = sorted(known)
    close = difflib.get_close_matches(name.lower(), choices, n=1, cutoff=0.6)
    return f"did you mean {close[0]!r}?" if close else f"choose one of {', '.join(choices)}"
