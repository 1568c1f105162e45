"""Ctrl-C at any moment of a command: one line on standard error, and exit code 130.

A command calls `leave_at_once` before it imports anything that takes time, and `raise_in_main` once
there may be something to clean up. Training and supervisors, which have to end in order, install
handlers of their own while they run. This module imports only what Python has loaded anyway, so
that Ctrl-C behaves so from the first hundredths of a second on; for the same reason it spells out
two variables of `exajax.job.environment`.
"""

import os
import signal
import sys

INTERRUPTED = 130
"""Exit code of an interrupted command by the convention of shells: 128 + SIGINT."""

CLEAN_UP_S = 3.0
"""Seconds that a command has to clean up after Ctrl-C; then it is ended. An exception does not
reach a main thread that is in C++, such as in XLA's compiler."""

RANKS = (
    "EXAJAX_HOST",
    "PALS_RANKID",
    "SLURM_PROCID",
    "PMI_RANK",
    "OMPI_COMM_WORLD_RANK",
    "JOB_COMPLETION_INDEX",
)
"""Environment variables that hold the rank of a process, by launcher; the first that is set counts.
"""

SUPERVISED = "EXAJAX_ROLE"
"""Environment variable of a process whose parent reports the interrupt."""

_reported = False


def leave_at_once() -> None:
    """From now on Ctrl-C ends this process at once: it has nothing to clean up."""
    signal.signal(signal.SIGINT, _leave)


def raise_in_main() -> None:
    """From now on Ctrl-C raises `KeyboardInterrupt`, and ends the process after `CLEAN_UP_S`."""
    import threading

    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    threading.Thread(target=_watch, args=(reader,), daemon=True, name="interrupts").start()
    signal.signal(signal.SIGINT, _raise)


def report_interrupt() -> None:
    """Prints that the job was interrupted: once, and from its first process alone."""
    global _reported
    rank = next((os.environ[name] for name in RANKS if name in os.environ), "0")
    if not _reported and rank == "0" and SUPERVISED not in os.environ:
        _reported = True
        sys.stdout.flush()
        os.write(2, b"exajax: interrupted\n")


def _leave(number: int, frame: object) -> None:
    report_interrupt()
    os._exit(INTERRUPTED)


def _raise(number: int, frame: object) -> None:
    raise KeyboardInterrupt


def _watch(reader: int) -> None:
    """Ends this process if it still runs `CLEAN_UP_S` after a SIGINT that `_raise` handled."""
    import time

    while signals := os.read(reader, 64):
        if signal.SIGINT in signals and signal.getsignal(signal.SIGINT) is _raise:
            time.sleep(CLEAN_UP_S)
            if signal.getsignal(signal.SIGINT) is _raise:
                _leave(signal.SIGINT, None)
