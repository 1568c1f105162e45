"""Where the training processes of a run are, as they tell in their events, read as they come."""

import contextlib
import json
from dataclasses import dataclass
from pathlib import Path

from exajax.job.events import FOLDER


@dataclass(frozen=True)
class Where:
    """Where a training process is.

    Attributes:
        attempt: that it belongs to, 0 before there was one.
        phase: what it is at.
        step: the update that it is at or behind.
    """

    attempt: int = 0
    phase: str = "start"
    step: int = 0


class Whereabouts:
    """Follows the events of all workers of a run.

    Args:
        run_dir: the run folder.
    """

    def __init__(self, run_dir: Path) -> None:
        self._folder = run_dir / FOLDER
        self._read_bytes: dict[Path, int] = {}
        self._last: dict[int, Where] = {}
        self._passed: dict[int, set[str]] = {}

    def update(self) -> None:
        """Reads what has been told since the last time."""
        for host, last in self._last.items():
            self._passed[host] = {last.phase}
        for path in self._folder.glob("*-worker.jsonl"):
            host = int(path.name.partition("-")[0])
            for where in self._new(path):
                self._last[host] = where
                self._passed.setdefault(host, set()).add(where.phase)

    def of(self, host: int) -> Where:
        """Returns where the worker of a host is, or was when it ended."""
        return self._last.get(host, Where())

    def has_been_at(self, host: int, phase: str) -> bool:
        """Returns whether a host is at a phase, or has been since the last but one update."""
        return phase in self._passed.get(host, {"start"})

    def _new(self, path: Path) -> list[Where]:
        with path.open("rb") as file:
            file.seek(self._read_bytes.get(path, 0))
            content = file.read()
        whole = content[: content.rfind(b"\n") + 1]
        self._read_bytes[path] = self._read_bytes.get(path, 0) + len(whole)
        found = []
        for line in whole.splitlines():
            with contextlib.suppress(ValueError, KeyError, TypeError):
                event = json.loads(line)
                if event["event"] == "phase":
                    found.append(Where(event["attempt"], event["phase"], event["step"]))
        return found
