"""What happened to a run, as lines of JSON: one file a writer, so that no two ever share one."""

import contextlib
import json
import time
from pathlib import Path
from typing import Any

from exajax.runtime import to_json

FOLDER = "events"


class EventLog:
    """The events of one process, appended to `RUN_DIR/events/HOST-ROLE.jsonl`.

    Every event is one write, so that a process that is killed leaves whole lines and at most one
    that is cut short, at the end.

    Args:
        run_dir: the run folder.
        host: number of the host.
        role: `supervisor`, `worker`, `parent` or `chaos`.
        attempt: number of the attempt at the run that the process belongs to.
    """

    def __init__(self, run_dir: Path, host: int, role: str, attempt: int = 0) -> None:
        self._path = run_dir / FOLDER / f"{host}-{role}.jsonl"
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._cut = self._path.exists() and not self._path.read_bytes().endswith(b"\n")
        self._file = self._path.open("ab", buffering=0)
        self.host, self.attempt = host, attempt

    def write(self, event: str, **facts: Any) -> None:
        """Appends an event with the time of now, in seconds since 1970; lost on a full disk."""
        line = {"time": time.time(), "attempt": self.attempt, "host": self.host, "event": event}
        # A line that an earlier process could not finish stays a line of its own.
        begin, self._cut = "\n" if self._cut else "", False
        with contextlib.suppress(OSError):
            self._file.write((begin + to_json(line | facts) + "\n").encode())

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def read_events(run_dir: Path) -> list[dict[str, Any]]:
    """Returns the events of all writers of a run, by time, without lines cut short."""
    found = []
    for path in sorted((run_dir / FOLDER).glob("*.jsonl")):
        role = path.stem.partition("-")[2]
        for line in path.read_bytes().splitlines():
            with contextlib.suppress(ValueError):
                event = json.loads(line)
                if isinstance(event, dict) and "time" in event:
                    found.append(event | {"role": role})
    return sorted(found, key=lambda event: event["time"])
