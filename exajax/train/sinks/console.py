"""Progress of a training run as lines of text."""

import time
from collections.abc import Mapping
from typing import TextIO

from exajax import units

EVERY_S = 2.0
"""Seconds between two lines, at least."""


class Console:
    """Prints a line every `EVERY_S` seconds, and every validation loss.

    Args:
        out: where to print.
        steps: steps in total.
    """

    def __init__(self, out: TextIO, steps: int) -> None:
        self._out, self._steps = out, steps
        self._printed_s = 0.0

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Prints the values of a step, if it is time."""
        now_s = time.monotonic()
        last = step == self._steps
        if "validation_loss" not in values and not last and now_s - self._printed_s < EVERY_S:
            return
        words = describe(values)
        if not words:
            return
        self._printed_s = now_s
        width = len(str(self._steps))
        print(
            f"  step {step:>{width}}/{self._steps}  {words}",
            file=self._out,
            flush=True,
        )

    def close(self) -> None:
        """Nothing is pending."""


def describe(values: Mapping[str, float]) -> str:
    """Returns the values of a record in words."""
    parts = []
    if "loss" in values:
        parts.append(f"loss {values['loss']:.3f}")
    if "learning_rate" in values:
        parts.append(f"learning rate {values['learning_rate']:.2e}")
    if "validation_loss" in values:
        parts.append(f"validation loss {values['validation_loss']:.3f} nats")
    if "validation_accuracy" in values:
        parts.append(f"accuracy {values['validation_accuracy']:.1%}")
    if "step_time_s" in values:
        parts.append(f"{units.show(values['step_time_s'], 's')}/step")
    if "tokens_per_s" in values:
        parts.append(f"{values['tokens_per_s']:,.0f} tokens/s")
    if "mfu" in values:
        parts.append(f"MFU {values['mfu']:.1%}")
    return "  ".join(parts)
