"""Stopping in good order: every process of a job ends after the same step."""

import os
import signal
import threading
from types import FrameType

import jax

from exajax.job import coordination


class StopRequest:
    """Ctrl-C or SIGTERM, turned into one step after which all processes stop.

    It is made just before the first step: until then there is nothing to save, and a process that
    is asked to end does so at once. With several processes JAX's preemption service catches
    SIGTERM, and agrees on the step; Ctrl-C is passed to it as SIGTERM. A second Ctrl-C ends the
    process at once.
    """

    def __init__(self) -> None:
        self._asked = False
        self._owns_signals = threading.current_thread() is threading.main_thread()
        if (
            not self._owns_signals
        ):  # signals come to the main thread; its owner decides what they do
            return
        self._before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
        signal.signal(signal.SIGINT, self._on_signal)
        if jax.process_count() == 1:
            signal.signal(signal.SIGTERM, self._on_signal)
        else:
            coordination.catch_sigterm()

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self._asked and number == signal.SIGINT:  # SIGTERM may come to a whole tree, and twice
            os._exit(130)
        self._asked = True
        if jax.process_count() > 1:
            os.kill(os.getpid(), signal.SIGTERM)

    def after(self, step: int) -> bool:
        """Returns whether to stop after this step. Every process must ask after every step."""
        if jax.process_count() == 1:
            return self._asked
        return coordination.sigterm_ends_at(step)

    def close(self) -> None:
        """Gives the signals back."""
        if not self._owns_signals:
            return
        signal.signal(signal.SIGINT, self._before[0])
        if jax.process_count() == 1:
            signal.signal(signal.SIGTERM, self._before[1])
