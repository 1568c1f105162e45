"""The folder of a run: which job it belongs to, and its report `run.json`."""

import fcntl
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from pydantic import ConfigDict

from exajax.errors import InputError
from exajax.files.reading import Malformed, read_json, shown
from exajax.files.schema import Record, checked
from exajax.job import events
from exajax.job.runtime import to_json

REPORT = "run.json"
COPY = ".run.json.copy"

FOLDERS = (
    *(".job", "checkpoints", "checkpoints/damaged"),
    *(events.FOLDER, "logs", "prometheus", "tensorboard"),
)
APPENDED = (".lock", "metrics.jsonl", "samples.jsonl")
"""What a run writes into as it is there; any other file of its own it replaces."""

MOST_BYTES = 64 << 20
"""Larger than any report: one holds the losses of every step."""


class Report(Record):
    """`run.json`: what makes two runs the same job, and sections that commands add."""

    model_config = ConfigDict(extra="allow")

    job: dict[str, Any]


class RunFolder:
    """A run folder that belongs to one job.

    `job` is written when the run starts and compared when it goes on; everything else is added by
    section. The file is replaced as a whole, so it is never half-written; a copy beside it stands
    in for one that a disk has damaged.
    """

    def __init__(self, path: Path, content: dict[str, Any], lock: IO[str] | None) -> None:
        self.path, self.content, self._lock = path, content, lock

    @classmethod
    def open(cls, path: Path, job: Mapping[str, Any], *, lock: bool = True) -> "RunFolder":
        """Makes a run folder, or opens that of an earlier run of the same job.

        Args:
            path: the folder.
            job: what makes two runs the same job, as JSON.
            lock: whether to keep others out; a supervisor's lease does so for its workers.

        Raises:
            InputError: it cannot be written, it is in use, it belongs to another job, or `run.json`
                is damaged.
        """
        check(path, job)
        try:
            path.mkdir(parents=True, exist_ok=True)
            held = _locked(path) if lock else None
        except OSError as error:
            raise InputError(
                "run_dir", f"cannot write to {path}: {error.strerror}", "give another folder"
            ) from error
        folder = cls(path, read(path) or {"job": json.loads(to_json(job))}, held)
        folder.write()  # from now on the folder is this job's, whatever ends it
        return folder

    def write(self, **sections: Any) -> None:
        """Replaces sections of `run.json`."""
        self.content |= json.loads(to_json(sections))
        text = to_json(self.content, indent=2) + "\n"
        for name in (COPY, REPORT):
            temporary = self.path / f".{REPORT}.new"
            with temporary.open("w") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(self.path / name)


def _locked(path: Path) -> IO[str]:
    lock = (path / ".lock").open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise InputError(
            "run_dir", f"{path} is in use by a running job", "end it, or give another folder"
        ) from None
    except OSError:
        pass  # a file system without locks
    return lock


def check(path: Path, job: Mapping[str, Any]) -> None:
    """Raises an `InputError` if a folder is not free and not this job's. Writes nothing."""
    content = read(path)
    if content is not None:
        _check_same(path, content["job"], json.loads(to_json(job)))
    check_writable(path, "run_dir")
    _check_entries(path)


def _check_entries(path: Path) -> None:
    """Raises an `InputError` if a name that a run writes to is taken by what it cannot write to.

    Found while it trains, it would be an error of the system's that no restart mends.
    """

    def refuse(entry: Path, problem: str) -> None:
        raise InputError(
            "run_dir", f"{entry} {problem}", "move it out of the way, or give another folder"
        )

    for folder in (path / name for name in FOLDERS):
        if os.path.lexists(folder):
            if not folder.is_dir():
                refuse(folder, "is not a folder")
            check_writable(folder, "run_dir")
    appended = [path / name for name in APPENDED]
    for file in [*appended, *(path / events.FOLDER).glob("*.jsonl")]:
        if os.path.lexists(file) and not (file.is_file() and os.access(file, os.R_OK | os.W_OK)):
            refuse(file, "is not a file that can be written")
    for folder in (path, path / ".job"):
        for name in _folders_in(folder):
            if folder != path or name in (REPORT, COPY, "tokenizer.json"):
                refuse(folder / name, "is a folder, and a run has a file there")


def _folders_in(path: Path) -> list[str]:
    """Returns the names of the folders in a folder: one listing, however many files it has."""
    if not path.is_dir():
        return []
    with os.scandir(path) as entries:
        return [entry.name for entry in entries if entry.is_dir()]


def check_writable(path: Path, flag: str) -> None:
    """Raises an `InputError` if a folder is none, or cannot be made or written. Writes nothing."""
    nearest = next(parent for parent in [path, *path.absolute().parents] if parent.exists())
    if not nearest.is_dir():
        raise InputError(flag, f"{nearest} is not a folder", "give a folder")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise InputError(flag, f"cannot write to {path}", "give another folder")


def read(path: Path) -> dict[str, Any] | None:
    """Returns the `run.json` of a folder, None if there is none.

    Raises:
        InputError: it is damaged, or the folder holds something else.
    """
    try:
        if path.exists() and not path.is_dir():
            raise InputError("run_dir", f"{path} is not a folder", "give a folder")
        there = [name for name in (REPORT, COPY) if (path / name).exists()]
        if not there:
            if path.is_dir() and any(map(_foreign, path.iterdir())):
                raise InputError(
                    "run_dir", f"{path} holds other files and no run.json", "give an empty folder"
                )
            return None
    except OSError as error:
        raise InputError(
            "run_dir", f"cannot read {path}: {error.strerror}", "give another folder"
        ) from error
    problem = f"{path / REPORT} is missing"
    for name in there:
        try:
            content = read_json(path / name, MOST_BYTES)
            checked(Report, content)
        except Malformed as error:
            problem = f"{path / name} is damaged: {error}"
            continue
        if name == COPY:
            print(f"exajax: {problem}; its copy {COPY} is taken", file=sys.stderr)
        return dict(content)
    raise InputError("run_dir", problem, "restore it, or give another folder")


def _foreign(entry: Path) -> bool:
    """Returns whether something is not what a job leaves that ended before it trained.

    An empty folder for the checkpoints may be there: on a disk of its own, say.
    """
    if entry.name == "checkpoints":
        return not entry.is_dir() or any(path.is_dir() for path in entry.iterdir())
    return not (entry.name.startswith(".") or entry.name in (events.FOLDER, "logs"))


def _check_same(path: Path, theirs: Any, ours: Any, where: str = "") -> None:
    """Raises an error that names the first field in which two jobs differ."""
    if isinstance(theirs, dict) and isinstance(ours, dict):
        for key in {**ours, **theirs}:  # in our order: what matters most comes first
            _check_same(path, theirs.get(key), ours.get(key), f"{where}.{key}" if where else key)
    elif theirs != ours:
        raise InputError(
            "run_dir",
            f"{path} is of another run: its {where} is {shown(theirs)}, this one's is "
            f"{shown(ours)}",
            "give another folder, or the same options as before",
        )
