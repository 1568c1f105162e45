"""The folder of a run: `run.json` with the job's identity and results, its lock, its checks."""

import fcntl
import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from pydantic import ConfigDict

from exajax.errors import InputError
from exajax.files.reading import Malformed, read_json, shown
from exajax.files.schema import Record, checked
from exajax.job import events
from exajax.job.runtime import json_text

LOGGER = logging.getLogger(__name__)

REPORT = "run.json"
COPY = ".run.json.copy"

FOLDERS = (
    *(".job", "checkpoints", "checkpoints/damaged"),
    *(events.FOLDER, "logs", "prometheus", "tensorboard"),
)
APPENDED = (".lock", "metrics.jsonl", "samples.jsonl")
"""Files that a run opens for writing in place; it replaces all its other files."""

MOST_BYTES = 64 << 20
"""Bytes; more than any `run.json`, which holds the loss of every step."""


class RunReport(Record):
    """`run.json`: the identity of the job, and sections that commands add."""

    model_config = ConfigDict(extra="allow")

    job: dict[str, Any]


class RunFolder:
    """A run folder that belongs to one job.

    The identity `job` is written when the run starts and compared when it continues; everything
    else is added by section. `run.json` is replaced atomically; a copy in the same folder is read
    where the disk has damaged it.
    """

    def __init__(self, path: Path, content: dict[str, Any], lock: IO[str] | None) -> None:
        self.path, self.content, self._lock = path, content, lock

    @classmethod
    def open(cls, path: Path, job: Mapping[str, Any], *, lock: bool = True) -> "RunFolder":
        """Makes a run folder, or opens that of an earlier run of the same job.

        Args:
            path: the folder.
            job: the identity of the job, as JSON.
            lock: whether to lock the folder; workers of a supervised job rely on its lease.

        Raises:
            InputError: it cannot be written, it is in use, it belongs to another job, or `run.json`
                is damaged.
        """
        check(path, job)
        try:
            path.mkdir(parents=True, exist_ok=True)
            lock_file = _locked(path) if lock else None
        except OSError as error:
            raise InputError(
                "run_dir", f"cannot write to {path}: {error.strerror}", "give another folder"
            ) from error
        folder = cls(path, read(path) or {"job": json.loads(json_text(job))}, lock_file)
        folder.write()  # from now on the folder belongs to this job, however it ends
        return folder

    def write(self, **sections: Any) -> None:
        """Replaces sections of `run.json`."""
        self.content |= json.loads(json_text(sections))
        text = json_text(self.content, indent=2) + "\n"
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
    """Raises an `InputError` unless a folder is free or belongs to this job. Writes nothing."""
    content = read(path)
    if content is not None:
        _check_same(path, content["job"], json.loads(json_text(job)))
    check_writable(path, "run_dir")
    _check_entries(path)


def _check_entries(path: Path) -> None:
    """Raises an `InputError` if something that a run cannot write to has a name that it uses.

    Detected only during training, it would be a system error that every restart meets again.
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
    """The names of the subfolders of a folder, from one listing however many files it has."""
    if not path.is_dir():
        return []
    with os.scandir(path) as entries:
        return [entry.name for entry in entries if entry.is_dir()]


def check_writable(path: Path, field: str) -> None:
    """Raises an `InputError` of a field unless a folder can be made or written. Writes nothing."""
    nearest = next(parent for parent in [path, *path.absolute().parents] if parent.exists())
    if not nearest.is_dir():
        raise InputError(field, f"{nearest} is not a folder", "give a folder")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise InputError(field, f"cannot write to {path}", "give another folder")


def read(path: Path) -> dict[str, Any] | None:
    """The content of a folder's `run.json`, None if there is none.

    Raises:
        InputError: `run.json` and its copy are damaged, or the folder holds other files.
    """
    try:
        if path.exists() and not path.is_dir():
            raise InputError("run_dir", f"{path} is not a folder", "give a folder")
        existing = [name for name in (REPORT, COPY) if (path / name).exists()]
        if not existing:
            if path.is_dir() and any(map(_is_foreign, path.iterdir())):
                raise InputError(
                    "run_dir", f"{path} holds other files and no run.json", "give an empty folder"
                )
            return None
    except OSError as error:
        raise InputError(
            "run_dir", f"cannot read {path}: {error.strerror}", "give another folder"
        ) from error
    problem = f"{path / REPORT} is missing"
    for name in existing:
        try:
            content = read_json(path / name, MOST_BYTES)
            checked(RunReport, content)
        except Malformed as error:
            problem = f"{path / name} is damaged: {error}"
            continue
        if name == COPY:
            LOGGER.warning("%s; its copy %s is used", problem, COPY)
        return dict(content)
    raise InputError("run_dir", problem, "restore it, or give another folder")


def _is_foreign(entry: Path) -> bool:
    """Whether a file or folder cannot come from a job that ended before it trained.

    A `checkpoints` folder without subfolders may exist already, such as the mount of another disk.
    """
    if entry.name == "checkpoints":
        return not entry.is_dir() or any(path.is_dir() for path in entry.iterdir())
    return not (entry.name.startswith(".") or entry.name in (events.FOLDER, "logs"))


def _check_same(path: Path, recorded: Any, current: Any, where: str = "") -> None:
    """Raises an error that names the first field in which two identities differ."""
    if isinstance(recorded, dict) and isinstance(current, dict):
        for key in {**current, **recorded}:  # the current order: the most important fields first
            field = f"{where}.{key}" if where else key
            _check_same(path, recorded.get(key), current.get(key), field)
    elif recorded != current:
        raise InputError(
            "run_dir",
            f"{path} is of another run: its {where} is {shown(recorded)}, this one's is "
            f"{shown(current)}",
            "give another folder, or the same options as before",
        )
