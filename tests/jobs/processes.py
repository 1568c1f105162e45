"""Real jobs in real processes, and what is left of them."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tests.conftest import REPOSITORY

FRONT_DOOR = REPOSITORY / "launch" / "multihost.py"
SMALL = Path(__file__).with_name("small.toml")


def left_over(run_dir: Path) -> list[str]:
    """Returns the command lines of processes that still work on a run folder."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except OSError:
                continue
            if str(run_dir) in line and "exajax" in line:
                found.append(f"{entry.name}: {line}")
    return found


def wait_until(condition: Callable[[], bool], timeout_s: float) -> None:
    """Waits for a condition, and fails the test if it does not come."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"waited {timeout_s} s in vain"
        time.sleep(0.1)


class Job:
    """A job in the background whose output is kept in a file; killed at the end of a `with`."""

    def __init__(self, log: Path, *args: object) -> None:
        self.log = log
        self._file = log.open("w")
        first = [str(args[0])] if str(args[0]).endswith(".py") else ["-m", "exajax", str(args[0])]
        self.process = subprocess.Popen(
            [sys.executable, *first, *map(str, args[1:])],
            stdin=subprocess.DEVNULL,
            stdout=self._file,
            stderr=subprocess.STDOUT,
        )

    def __enter__(self) -> "Job":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()  # its children end with it
        self.process.wait()
        self._file.close()

    def wait_for(self, text: str, timeout_s: float = 120) -> None:
        """Waits until the job has printed a text."""
        wait_until(
            lambda: text in self.log.read_text() or self.process.poll() is not None, timeout_s
        )
        assert text in self.log.read_text(), self.log.read_text()[-3000:]

    def signal(self, number: signal.Signals) -> float:
        """Sends a signal; returns the seconds until the job's first process has ended."""
        started_s = time.monotonic()
        self.process.send_signal(number)
        self.process.wait(timeout=60)
        return time.monotonic() - started_s
