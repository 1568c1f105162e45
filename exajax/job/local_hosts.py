"""Host processes on this machine: started together, stopped together, never orphaned."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import IO

from exajax.job.environment import COORDINATOR, HOST, HOSTS, LIFELINE

CAPTURE = subprocess.PIPE

CPU = {"JAX_PLATFORMS": "cpu"}
"""Environment of a process that is about this machine's CPU, whatever else is attached."""

GRACE_S = 8.0
"""Time that processes have to save and end after they were asked to."""


class Interrupted(Exception):  # noqa: N818 - it is an event, not an error
    """Ctrl-C or SIGTERM reached this process; its children have ended."""


class StageFailed(RuntimeError):  # noqa: N818 - reads as what happened
    """A process of a stage ended with an error.

    Args:
        code: its exit code.
        what: which process it was.
        log: lines of its log; the last ones are shown, or the one that names a bad input.
    """

    def __init__(self, code: int, what: str, log: Sequence[str]) -> None:
        self.code = code
        named = [line for line in log if line.startswith("exajax: error:")]
        shown = named[-1:] if code == 2 and named else [f"{what}; its log ends:", *log[-15:]]
        super().__init__("\n".join(shown))


@dataclass(frozen=True)
class Process:
    """A command to run.

    Attributes:
        argv: arguments behind `python -m exajax`.
        env: variables added to this process's environment.
        stdout: where its standard output goes, `CAPTURE` to have it returned; None is this
            process's own.
        log: file for its standard error; None is this process's own.
    """

    argv: Sequence[str]
    env: Mapping[str, str]
    stdout: int | None = None
    log: Path | None = None


def verdict(codes: Iterable[int]) -> int:
    """Returns the exit code of a job: 2 bad input, 130 interrupted, 1 any other failure, or 0."""
    found = set(codes)
    return next((code for code in (2, 130) if code in found), int(found != {0}))


def hosts(
    argv: Sequence[str],
    count: int,
    logs: Path | None = None,
    env: Mapping[str, str] | None = None,
) -> list[Process]:
    """Returns one command as `count` host processes of one job; the first one may print.

    Args:
        argv: arguments behind `python -m exajax`.
        count: how many.
        logs: folder for what they write to standard error, one file each.
        env: more variables for their environment.
    """
    coordinator = f"127.0.0.1:{free_port()}"
    return [
        Process(
            argv,
            {
                HOSTS.name: str(count),
                HOST.name: str(host),
                COORDINATOR.name: coordinator,
                **(env or {}),
            },
            None if host == 0 else subprocess.DEVNULL,
            logs / f"{argv[0]}-host-{host}.log" if logs else None,
        )
        for host in range(count)
    ]


def free_port() -> int:
    """Returns a TCP port that nobody of this machine listens on."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])


def run(processes: Sequence[Process]) -> list[tuple[int, str]]:
    """Runs processes together until all have ended.

    If one fails the others are stopped: they would wait for it. On Ctrl-C or SIGTERM all are asked
    to save and end, and killed after `GRACE_S`. A process whose parent is killed ends by itself.

    Returns:
        Exit code and captured output of each, in order. A process that a signal ended has 128 +
        its number.

    Raises:
        Interrupted: this process was asked to stop.
    """
    asked_to_stop: list[int] = []

    def remember(number: int, frame: FrameType | None) -> None:
        asked_to_stop.append(number)

    before = {number: signal.signal(number, remember) for number in (signal.SIGINT, signal.SIGTERM)}
    running: list[subprocess.Popen[str]] = []
    files = [
        tempfile.TemporaryFile("w+") if process.stdout == CAPTURE else None  # noqa: SIM115
        for process in processes
    ]
    try:
        for process, file in zip(processes, files, strict=True):
            running.append(_start(process, file if file else process.stdout))
        _watch(running, asked_to_stop)
    finally:
        for child in running:
            if child.poll() is None:
                child.kill()
            child.wait()
        for number, handler in before.items():
            signal.signal(number, handler)
    if asked_to_stop:
        raise Interrupted
    return [
        (128 - child.returncode if child.returncode < 0 else child.returncode, _content(file))
        for child, file in zip(running, files, strict=True)
    ]


def _content(file: IO[str] | None) -> str:
    if file is None:
        return ""
    with file:
        file.seek(0)
        return file.read()


def _start(process: Process, stdout: IO[str] | int | None) -> "subprocess.Popen[str]":
    with contextlib.ExitStack() as files:
        return subprocess.Popen(
            [sys.executable, "-m", "exajax", *process.argv],
            env={**os.environ, **process.env, LIFELINE.name: "1"},
            stdin=subprocess.PIPE,  # never written: its end is the end of this process
            stdout=stdout,
            stderr=files.enter_context(process.log.open("w")) if process.log else None,
            text=True,
            start_new_session=True,  # Ctrl-C comes to this process alone, which passes it on
        )


def _watch(running: list["subprocess.Popen[str]"], asked_to_stop: list[int]) -> None:
    """Waits until all have ended; stops the rest when one fails or a signal came."""
    deadline = None
    while None in (codes := [child.poll() for child in running]):
        failed = any(code not in (None, 0) for code in codes)
        if deadline is None and (failed or asked_to_stop):
            # The others of a failed job cannot save: they wait for the one that is gone.
            deadline = time.monotonic() + (GRACE_S if asked_to_stop else 2.0)
            _signal(running, signal.SIGTERM if asked_to_stop else None)
        if deadline is not None and (time.monotonic() > deadline or len(asked_to_stop) > 1):
            _signal(running, signal.SIGKILL)
        time.sleep(0.05)


def _signal(running: list["subprocess.Popen[str]"], number: signal.Signals | None) -> None:
    for child in running:
        if number is not None and child.poll() is None:
            child.send_signal(number)
