"""Bad steps: a loss or gradient that is not finite, or a spike of the loss; what to do then."""

import math
import statistics
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from exajax.errors import InputError

ON_NAN = ("stop", "skip", "roll-back")
ON_SPIKE = ("ignore", "roll-back", "stop")

WINDOW = 64
"""Losses that a new one is compared with: enough for a steady median, few enough that it follows
the fall of the loss. They are saved with every checkpoint, so that a resumed run judges alike."""

FEWEST = 16
"""Losses without which nothing is called a spike: the first ones fall too fast to compare with."""

DEVIATIONS = 10.0
"""Median absolute deviations above the median: 6.7 standard deviations, were the noise Gaussian.
Median and MAD, because a mean and a standard deviation would move with the spike itself (Leys et
al. 2013, doi:10.1016/j.jesp.2013.03.013)."""

FLOOR = 0.1
"""Share of the median that a spike rises above it at least. Where the loss hardly moves, as on a
plateau, the MAD is next to nothing and every step would be a spike."""

ROLL_BACKS = 4
"""Times that a run goes back without having saved a newer checkpoint in between."""

SKIPS = 16
"""Steps in a row that are skipped: with more, it is not the samples."""


@dataclass(frozen=True)
class Policy:
    """What to do about bad steps.

    Attributes:
        on_nan: where loss or gradient norm is not finite, one of `ON_NAN`. `skip` needs a step
            that was built with `skip_bad`.
        on_spike: where the loss is far above those before, one of `ON_SPIKE`.
        audit_every: steps between audits, which go before every checkpoint too; 0 for none.

    Raises:
        InputError: there is no such action, or no such number of steps.
    """

    on_nan: str = "stop"
    on_spike: str = "ignore"
    audit_every: int = 0

    def __post_init__(self) -> None:
        given = (("on_nan", self.on_nan, ON_NAN), ("on_spike", self.on_spike, ON_SPIKE))
        for flag, value, choices in given:
            if value not in choices:
                raise InputError(flag, f"unknown action {value!r}", f"choose of {choices}")
        if self.audit_every < 0:
            raise InputError("audit_every", f"it is {self.audit_every}", "give 0 or more")


DEFAULT = Policy()


@dataclass(frozen=True)
class RollBack:
    """A verdict: the run has to go back to its newest checkpoint.

    Attributes:
        step: number of the step that is to blame, from 1.
        batches: how many batches to skip, up to and with that of the step; 0 goes the same way
            again.
    """

    step: int
    batches: int


def is_spike(loss: float, before: Sequence[float]) -> bool:
    """Returns whether a loss is a spike.

    That is a loss above the median of the `WINDOW` before it by `DEVIATIONS` median absolute
    deviations, and by `FLOOR` of the median.

    Args:
        loss: of the step.
        before: losses of good steps, the oldest first.
    """
    if len(before) < FEWEST:
        return False
    median = statistics.median(before)
    deviation = statistics.median(abs(value - median) for value in before)
    return loss > median + max(DEVIATIONS * deviation, FLOOR * abs(median))


class BadSteps:
    """What a run knows of its bad steps. All processes know the same, as they read the same losses.

    Args:
        policy: what to do about them.
    """

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._losses: deque[float] = deque(maxlen=WINDOW)
        self.count = 0
        self._in_a_row = 0
        self._roll_backs, self._furthest, self._batches = 0, 0, 0
        self._newest: int | None = None

    def kind(self, loss: float, grad_norm: float) -> str | None:
        """Returns what is bad about a step, `nan` or `spike`; None for a good one.

        The losses of good steps are what later ones are compared with.
        """
        if not (math.isfinite(loss) and math.isfinite(grad_norm)):
            kind = "nan"
        elif self._policy.on_spike != "ignore" and is_spike(loss, self._losses):
            kind = "spike"
        else:
            self._losses.append(loss)
            self._in_a_row = 0
            return None
        self.count += 1
        return kind

    def action(self, kind: str) -> str:
        """Returns what to do about a bad step; `stop` where skipping was in vain."""
        wanted = self._policy.on_nan if kind == "nan" else self._policy.on_spike
        self._in_a_row += 1
        return "stop" if wanted == "skip" and self._in_a_row > SKIPS else wanted

    def still(self, action: str, newest: int | None) -> str:
        """Returns an action, or `stop` in place of a roll-back that has often been in vain.

        Args:
            action: what to do.
            newest: step of the newest checkpoint: a newer one is progress.
        """
        if newest != self._newest:
            self._newest, self._roll_backs = newest, 0
        return "stop" if action == "roll-back" and self._roll_backs >= ROLL_BACKS else action

    def roll_back(self, step: int) -> RollBack:
        """Returns what takes the loop back, to step over the batch of a bad step.

        Where that did not help, what came before it is to blame: a loss is that of the parameters
        which the batches before have left. Twice as many are skipped then, as PaLM's spikes were
        overcome (arXiv:2204.02311, section 5.1).
        """
        self._batches = 2 * self._batches if step <= self._furthest else 1
        self._furthest = max(self._furthest, step)
        self._roll_backs += 1
        return RollBack(step, self._batches)

    def to_json(self, skipped: Iterable[int]) -> dict[str, Any]:
        """Returns what a checkpoint has to hold for another process to go on alike."""
        return {"count": self.count, "skipped": sorted(skipped), "losses": list(self._losses)}

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Takes up what was saved with a checkpoint; bad steps since then stay counted."""
        self._losses = deque(saved.get("losses", ()), WINDOW)
        self.count = max(self.count, saved.get("count", 0))
