"""What happened to a run, as lines of JSON: one file a writer, so that no two ever share one."""

import contextlib
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import ConfigDict, Field, TypeAdapter, with_config
from typing_extensions import TypedDict

from exajax.job.runtime import to_json

FOLDER = "events"


@with_config(ConfigDict(strict=True, extra="allow", allow_inf_nan=False))
class _Event(TypedDict, total=False):
    """The fields of events that something is computed from; each event has others of its own."""

    phase: str
    step: Annotated[int, Field(ge=0, lt=2**63)]
    members: Annotated[list[int], Field(min_length=1)]
    hosts: list[int]
    seconds: float
    tier: str
    mesh: str


class Event(_Event):
    """A line of the events of a run: what every one of them has, and `_Event`.

    `time` is in seconds since 1970. `REQUIRED` says what events of some names have besides.
    """

    time: Annotated[float, Field(ge=0, lt=1e11)]
    event: str
    attempt: int
    host: int


_EVENT = TypeAdapter(Event)

REQUIRED: Mapping[str, frozenset[str]] = {
    "phase": frozenset({"phase", "step"}),
    "attempt": frozenset({"members"}),
    "checkpoint-saved": frozenset({"step", "seconds"}),
}
"""Fields without which an event of its name says nothing."""


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
        self._file = self._path.open("ab", buffering=0)
        self._cut = _is_cut_short(self._path)
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


def read_events(
    run_dir: Path, damaged: Callable[[str], None] = lambda problem: None
) -> list[dict[str, Any]]:
    """Returns the events of all writers of a run, by time.

    Args:
        run_dir: the run folder.
        damaged: called with a line of text for every file of which something cannot be read. What
            can be is returned all the same. Lines that a kill has cut short are left out silently.
    """
    found: list[dict[str, Any]] = []
    for path in sorted((run_dir / FOLDER).glob("*.jsonl")):
        role = path.stem.partition("-")[2]
        problems = []
        try:
            with path.open("rb") as file:
                for number, line in enumerate(file, 1):
                    try:
                        found.append(dict(_parsed(line)) | {"role": role})
                    except ValueError:
                        if not _was_cut_short(line):
                            problems.append(number)
        except OSError as error:
            damaged(f"{path} cannot be read: {error.strerror}")
        if problems:
            damaged(
                f"{path}: {len(problems)} lines are no events and are left out, the first is line "
                f"{problems[0]}"
            )
    return sorted(found, key=lambda event: event["time"])


def _parsed(line: bytes) -> Event:
    event = _EVENT.validate_json(line)
    if missing := REQUIRED.get(event["event"], frozenset()) - event.keys():
        raise ValueError(f"it has no {', '.join(sorted(missing))}")
    return event


def _was_cut_short(line: bytes) -> bool:
    """Returns whether a line is the begin of an event, as a kill in the middle of a write leaves.

    Half a line is no JSON; one that is whole and wrong is damage.
    """
    return line.startswith(b'{"time"') and not line.rstrip().endswith(b"}")


def _is_cut_short(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(0, 2)
        if not file.tell():
            return False
        file.seek(-1, 2)
        return file.read(1) != b"\n"
