"""Signals that ask a process to stop, collected while it has children to stop first."""

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType


@contextlib.contextmanager
def collected_signals() -> Iterator[list[int]]:
    """A context that collects SIGINT and SIGTERM, in the order of their arrival, into a list."""
    received: list[int] = []

    def collect(number: int, frame: FrameType | None) -> None:
        received.append(number)

    handlers = {
        number: signal.signal(number, collect) for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield received
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
