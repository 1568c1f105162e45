"""A command that is run as a user runs it, and what must hold however it ends."""

import json
import math
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.fuzz import server

REPOSITORY = Path(__file__).parents[2]


@dataclass(frozen=True)
class Ended:
    """How a command ended: its exit code (None: it was killed at the limit), and its output."""

    argv: tuple[str, ...]
    code: int | None
    out: str
    err: str
    seconds: float


class Commands:
    """Runs commands in a folder, in forks of one process that has imported them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._server = subprocess.Popen(
            [sys.executable, server.__file__],
            cwd=REPOSITORY,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, argv: Sequence[str]) -> Ended:
        """Runs a command, and returns how it ended."""
        assert self._server.stdin
        assert self._server.stdout
        request = {"argv": list(argv), "cwd": str(self._folder)}
        self._server.stdin.write(json.dumps(request) + "\n")
        self._server.stdin.flush()
        return Ended(tuple(argv), **json.loads(self._server.stdout.readline()))

    def close(self) -> None:
        """Ends the process."""
        assert self._server.stdin
        self._server.stdin.close()
        self._server.wait(10)


def check(ended: Ended) -> None:
    """Asserts that a command ended in a value or in one line that says what to do.

    A value is exit code 0, and with `--json` strict JSON without NaN; bad input exit code 2 and one
    line of error; a command that cannot go on for another reason exit code 1 and one line.
    """
    shown = f"{ended.argv} -> {ended.code}\n{ended.err[-3000:]}"
    assert ended.code is not None, f"still running after {server.LIMIT_S:.0f} s: {ended.argv}"
    assert "Traceback" not in ended.err, shown
    assert ended.code in (0, 1, 2), shown
    if ended.code:
        (line,) = [
            line for line in ended.err.splitlines() if ": error: " in line or "failed" in line
        ]
        assert len(line) < 2500, shown
        return
    if "--json" in ended.argv:
        value = json.loads(ended.out, parse_constant=_refuse)
        assert isinstance(value, dict), shown
    assert "nan" not in ended.out.lower().split(), shown


def _refuse(constant: str) -> Any:
    raise AssertionError(f"{constant} in JSON")


def numbers(value: Any) -> list[float]:
    """Returns all numbers in a plain value."""
    if isinstance(value, dict):
        return [number for item in value.values() for number in numbers(item)]
    if isinstance(value, list):
        return [number for item in value for number in numbers(item)]
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        assert math.isfinite(value)
        return [float(value)]
    return []
