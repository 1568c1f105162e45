"""Ctrl-C from the first moment on: one line, and exit code 130.

A command calls `leave_at_once` before it imports anything that takes time, and `raise_in_main` once
there may be something to clean up. What must end in an order of its own (training, supervisors of
other processes) takes SIGINT over while it runs. It imports nothing that Python has not loaded.
Before Python has found this package, for some hundredths of a second, Ctrl-C is Python's own.
"""

import os
import signal
import sys

INTERRUPTED = 130
"""Exit code of what was interrupted, as shells have it: 128 + SIGINT."""

CLEAN_UP_S = 3.0
"""Time that a command has to clean up after Ctrl-C. It would wait longer where the main thread is
in C++, in XLA's compiler say, which no exception reaches."""

RANKS = (
    "EXAJAX_HOST",
    "PALS_RANKID",
    "SLURM_PROCID",
    "PMI_RANK",
    "OMPI_COMM_WORLD_RANK",
    "JOB_COMPLETION_INDEX",
)
"""Environment: the number of a process in its job, by launcher; the first that is set counts."""

_said = False


def leave_at_once() -> None:
    """From now on Ctrl-C ends this process then and there: it has nothing to clean up."""
    signal.signal(signal.SIGINT, _leave)


def raise_in_main() -> None:
    """From now on Ctrl-C raises `KeyboardInterrupt`, and ends what takes no notice of it."""
    import threading

    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    threading.Thread(target=_watch, args=(reader,), daemon=True, name="interrupts").start()
    signal.signal(signal.SIGINT, _raise)


def say() -> None:
    """Prints, once and for the whole job, that it was interrupted."""
    global _said
    rank = next((os.environ[name] for name in RANKS if name in os.environ), "0")
    if not _said and rank == "0" and "EXAJAX_ROLE" not in os.environ:
        _said = True
        sys.stdout.flush()
        os.write(2, b"exajax: interrupted\n")


def _leave(number: int, frame: object) -> None:
    say()
    os._exit(INTERRUPTED)


def _raise(number: int, frame: object) -> None:
    raise KeyboardInterrupt


def _watch(reader: int) -> None:
    """Ends this process if it goes on for `CLEAN_UP_S` after a SIGINT that nobody took over."""
    import time

    while signals := os.read(reader, 64):
        if signal.SIGINT in signals and signal.getsignal(signal.SIGINT) is _raise:
            time.sleep(CLEAN_UP_S)
            if signal.getsignal(signal.SIGINT) is _raise:
                _leave(signal.SIGINT, None)
