"""How far each training process of a run is, followed in their event logs."""

import contextlib
import json
from dataclasses import dataclass
from pathlib import Path

from exajax.job.events import FOLDER


@dataclass(frozen=True)
class WorkerProgress:
    """How far a training process is in the run.

    Attributes:
        attempt: the attempt that it belongs to, 0 before the first.
        phase: its current phase.
        step: its current or last update.
    """

    attempt: int = 0
    phase: str = "start"
    step: int = 0


class RunProgress:
    """Follows the event logs of all workers of a run.

    Args:
        run_dir: the run folder.
    """

    def __init__(self, run_dir: Path) -> None:
        self._folder = run_dir / FOLDER
        self._read_bytes: dict[Path, int] = {}
        self._last: dict[int, WorkerProgress] = {}
        self._entered: dict[int, set[str]] = {}

    def update(self) -> None:
        """Reads the events since the last update."""
        for host, last in self._last.items():
            self._entered[host] = {last.phase}
        for path in self._folder.glob("*-worker.jsonl"):
            host = int(path.name.partition("-")[0])
            for progress in self._new(path):
                self._last[host] = progress
                self._entered.setdefault(host, set()).add(progress.phase)

    def of(self, host: int) -> WorkerProgress:
        """How far a host's worker is, or was when it ended."""
        return self._last.get(host, WorkerProgress())

    def entered(self, host: int, phase: str) -> bool:
        """Whether a host is in a phase, or was between the last two updates."""
        return phase in self._entered.get(host, {"start"})

    def _new(self, path: Path) -> list[WorkerProgress]:
        """What the complete lines of a file that were not read before say, in order."""
        with path.open("rb") as file:
            file.seek(self._read_bytes.get(path, 0))
            content = file.read()
        complete = content[: content.rfind(b"\n") + 1]
        self._read_bytes[path] = self._read_bytes.get(path, 0) + len(complete)
        new = []
        for line in complete.splitlines():
            with contextlib.suppress(ValueError, KeyError, TypeError):
                event = json.loads(line)
                if event["event"] == "phase":
                    new.append(WorkerProgress(event["attempt"], event["phase"], event["step"]))
        return new
