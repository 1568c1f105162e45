"""The event log of a run: lines of JSON, one file for each process that writes."""

import contextlib
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import ConfigDict, Field, TypeAdapter, with_config
from typing_extensions import TypedDict

from exajax.job.runtime import json_text

FOLDER = "events"

PHASES = (
    "start", "compile", "restore", "step", "evaluate", "callback", "audit", "checkpoint", "end",
)  # fmt: skip
"""Phases of a training process, which it logs as it enters them (event `phase`).

`start` is before the training loop, which announces the others to `Hooks.progress`.
"""

EARLIEST_S = 1e9
"""In 2001, before any run: an earlier time has lost digits, and would make a run take decades."""

LATEST_AHEAD_S = 86_400.0
"""How far the clock of a host may be ahead of the reader's."""


@with_config(ConfigDict(strict=True, extra="allow", allow_inf_nan=False))
class _OptionalFields(TypedDict, total=False):
    """The typed fields that some events have; an event may have further fields of any type."""

    phase: str
    step: Annotated[int, Field(ge=0, lt=2**63)]
    members: Annotated[list[int], Field(min_length=1)]
    hosts: list[int]
    seconds: float
    tier: str
    mesh: str


class RunEvent(_OptionalFields):
    """One event of a run: the fields that every event has, and `_OptionalFields`.

    `time` is in seconds since 1970. `REQUIRED` lists which optional fields an event must have.
    """

    time: Annotated[float, Field(ge=EARLIEST_S)]
    event: str
    attempt: int
    host: int


_EVENT = TypeAdapter(RunEvent)

REQUIRED: Mapping[str, frozenset[str]] = {
    "phase": frozenset({"phase", "step"}),
    "attempt": frozenset({"members"}),
    "checkpoint-saved": frozenset({"step", "seconds"}),
}
"""Fields that an event must have besides those of all events, by its name."""


class EventLog:
    """The event log of one process, appended to `RUN_DIR/events/HOST-ROLE.jsonl`.

    Every event is one write, so that a process that is killed leaves at most one truncated line, at
    the end.

    Args:
        run_dir: the run folder.
        host: number of the host.
        role: `supervisor`, `worker`, `parent` or `chaos`.
        attempt: number of the attempt at the run that the process belongs to.
    """

    def __init__(self, run_dir: Path, host: int, role: str, attempt: int = 0) -> None:
        self._path = run_dir / FOLDER / f"{host}-{role}.jsonl"
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self._path.open("ab", buffering=0)
        self._truncated = _ends_truncated(self._path)
        self.host, self.attempt = host, attempt

    def write(self, event: str, **facts: Any) -> None:
        """Appends an event with the current time; silently lost where the disk is full."""
        line = {"time": time.time(), "attempt": self.attempt, "host": self.host, "event": event}
        # The truncated line of an earlier process is terminated first, or it would spoil this one.
        begin, self._truncated = "\n" if self._truncated else "", False
        with contextlib.suppress(OSError):
            self._file.write((begin + json_text(line | facts) + "\n").encode())

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def read_events(
    run_dir: Path, damaged: Callable[[str], None] = lambda problem: None
) -> list[dict[str, Any]]:
    """The events of all processes of a run, sorted by time, each with its writer's `role`.

    Args:
        run_dir: the run folder.
        damaged: called with a message for every file that is damaged in part; its other lines are
            returned. Lines that a kill has truncated are skipped without a message.
    """
    events: list[dict[str, Any]] = []
    for path in sorted((run_dir / FOLDER).glob("*.jsonl")):
        role = path.stem.partition("-")[2]
        malformed = []
        try:
            with path.open("rb") as file:
                for number, line in enumerate(file, 1):
                    try:
                        events.append(dict(_parsed(line)) | {"role": role})
                    except ValueError:
                        if not _is_truncated(line):
                            malformed.append(number)
        except OSError as error:
            damaged(f"{path} cannot be read: {error.strerror}")
        if malformed:
            damaged(
                f"{path}: {len(malformed)} lines are no events and are left out, the first is line "
                f"{malformed[0]}"
            )
    return sorted(events, key=lambda event: event["time"])


def _parsed(line: bytes) -> RunEvent:
    event = _EVENT.validate_json(line)
    if event["time"] > time.time() + LATEST_AHEAD_S:
        raise ValueError("its time is to come")
    if missing := REQUIRED.get(event["event"], frozenset()) - event.keys():
        raise ValueError(f"it has no {', '.join(sorted(missing))}")
    return event


def _is_truncated(line: bytes) -> bool:
    """Whether a line is the beginning of an event, as a kill in the middle of a write leaves it."""
    return line.startswith(b'{"time"') and not line.rstrip().endswith(b"}")


def _ends_truncated(path: Path) -> bool:
    """Whether the last line of a file has no end."""
    with path.open("rb") as file:
        file.seek(0, 2)
        if not file.tell():
            return False
        file.seek(-1, 2)
        return file.read(1) != b"\n"
