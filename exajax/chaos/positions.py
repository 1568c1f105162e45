"""The positions of a run's training processes, followed in their event logs."""

import contextlib
import json
from dataclasses import dataclass
from pathlib import Path

from exajax.job.events import FOLDER


@dataclass(frozen=True)
class Position:
    """The position of a training process in the run.

    Attributes:
        attempt: the attempt that it belongs to, 0 before the first.
        phase: its current phase.
        step: its current or last update.
    """

    attempt: int = 0
    phase: str = "start"
    step: int = 0


class WorkerPositions:
    """Follows the event logs of all workers of a run.

    Args:
        run_dir: the run folder.
    """

    def __init__(self, run_dir: Path) -> None:
        self._folder = run_dir / FOLDER
        self._read_bytes: dict[Path, int] = {}
        self._last: dict[int, Position] = {}
        self._entered: dict[int, set[str]] = {}

    def update(self) -> None:
        """Reads the events since the last update."""
        for host, last in self._last.items():
            self._entered[host] = {last.phase}
        for path in self._folder.glob("*-worker.jsonl"):
            host = int(path.name.partition("-")[0])
            for position in self._new(path):
                self._last[host] = position
                self._entered.setdefault(host, set()).add(position.phase)

    def of(self, host: int) -> Position:
        """The current or last position of a host's worker."""
        return self._last.get(host, Position())

    def entered(self, host: int, phase: str) -> bool:
        """Whether a host is in a phase, or was between the last two updates."""
        return phase in self._entered.get(host, {"start"})

    def _new(self, path: Path) -> list[Position]:
        """The positions in the complete lines of a file that were not read before."""
        with path.open("rb") as file:
            file.seek(self._read_bytes.get(path, 0))
            content = file.read()
        complete = content[: content.rfind(b"\n") + 1]
        self._read_bytes[path] = self._read_bytes.get(path, 0) + len(complete)
        positions = []
        for line in complete.splitlines():
            with contextlib.suppress(ValueError, KeyError, TypeError):
                event = json.loads(line)
                if event["event"] == "phase":
                    positions.append(Position(event["attempt"], event["phase"], event["step"]))
        return positions
