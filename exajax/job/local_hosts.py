"""Processes on this machine that stand for the hosts of a job: started and stopped together."""

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
"""Environment of a process that uses this machine's CPU devices, whatever else is attached."""

GRACE_S = 8.0
"""Seconds that processes have to save and end after SIGTERM."""


class Interrupted(Exception):  # noqa: N818 - an event, not an error
    """Ctrl-C or SIGTERM reached this process; its children have ended."""


class StageFailed(RuntimeError):  # noqa: N818 - reads as what happened
    """A child process ended with an error.

    Args:
        code: its exit code.
        what: which process it was, in words.
        log: lines of its log; the message ends with the last ones, or is the line that names a bad
            input.
    """

    def __init__(self, code: int, what: str, log: Sequence[str]) -> None:
        self.code = code
        errors = [line for line in log if line.startswith("exajax: error:")]
        shown = errors[-1:] if code == 2 and errors else [f"{what}; its log ends:", *log[-15:]]
        super().__init__("\n".join(shown))


@dataclass(frozen=True)
class Process:
    """A child process to start: an exajax command and its environment.

    Attributes:
        argv: arguments behind `python -m exajax`.
        env: variables added to this process's environment.
        stdout: where its standard output goes, `CAPTURE` to have it returned; None inherits.
        log: file for its standard error; None inherits.
    """

    argv: Sequence[str]
    env: Mapping[str, str]
    stdout: int | None = None
    log: Path | None = None


def exit_code(codes: Iterable[int]) -> int:
    """The exit code of a job: 2 bad input, 130 interrupted, 1 any other failure, else 0."""
    distinct = set(codes)
    return next((code for code in (2, 130) if code in distinct), int(distinct != {0}))


def host_processes(
    argv: Sequence[str],
    count: int,
    logs: Path | None = None,
    env: Mapping[str, str] | None = None,
) -> list[Process]:
    """One command as `count` host processes of one job; only the first writes standard output.

    Args:
        argv: arguments behind `python -m exajax`.
        count: number of hosts.
        logs: folder for their standard error, one file each; None inherits.
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
    """A TCP port on which no process of this machine listens."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])


def run_together(processes: Sequence[Process]) -> list[tuple[int, str]]:
    """Runs processes together until all have ended.

    If one fails the others are stopped, because they would wait for it. On Ctrl-C or SIGTERM all
    get SIGTERM, and SIGKILL after `GRACE_S`. A process whose parent is killed ends by itself.

    Returns:
        Exit code and captured output of each, in order. The exit code of a process that a signal
        ended is 128 plus the signal's number.

    Raises:
        Interrupted: this process was asked to stop.
    """
    signals: list[int] = []

    def remember(number: int, frame: FrameType | None) -> None:
        signals.append(number)

    handlers = {
        number: signal.signal(number, remember) for number in (signal.SIGINT, signal.SIGTERM)
    }
    children: list[subprocess.Popen[str]] = []
    files = [
        tempfile.TemporaryFile("w+") if process.stdout == CAPTURE else None  # noqa: SIM115
        for process in processes
    ]
    try:
        for process, file in zip(processes, files, strict=True):
            children.append(_start(process, file if file else process.stdout))
        _watch(children, signals)
    finally:
        for child in children:
            if child.poll() is None:
                child.kill()
            child.wait()
        for number, handler in handlers.items():
            signal.signal(number, handler)
    if signals:
        raise Interrupted
    return [
        (128 - child.returncode if child.returncode < 0 else child.returncode, _content(file))
        for child, file in zip(children, files, strict=True)
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
            start_new_session=True,  # the terminal sends Ctrl-C to this process alone
        )


def _watch(children: list["subprocess.Popen[str]"], signals: list[int]) -> None:
    """Waits until all have ended; stops the rest when one fails or this process got a signal."""
    deadline_s = None
    while None in (codes := [child.poll() for child in children]):
        failed = any(code not in (None, 0) for code in codes)
        if deadline_s is None and signals:
            deadline_s = time.monotonic() + GRACE_S
            _signal(children, signal.SIGTERM)
        elif deadline_s is None and failed:
            # The others cannot save without the one that has failed.
            deadline_s = time.monotonic() + 2.0
        if deadline_s is not None and (time.monotonic() > deadline_s or len(signals) > 1):
            _signal(children, signal.SIGKILL)
        time.sleep(0.05)


def _signal(children: list["subprocess.Popen[str]"], number: signal.Signals) -> None:
    for child in children:
        if child.poll() is None:
            child.send_signal(number)
