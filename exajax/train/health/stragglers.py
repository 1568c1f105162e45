"""Hosts that are slower than the others at the same work, and so hold up all of them."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

TIMES = ("step", "data", "dispatch", "replay")
"""What every host measures, in seconds: a step of the job, the same for all; of that its own wait
for a batch, and its own work to place the batch and start the update (time on a processor: waiting
for the devices is not its own); and a replayed micro-batch, the same work everywhere."""

RECENT = 7
"""Audits whose median counts, so that one hiccup is not a straggler."""

FEWEST = 5
"""Audits before which nobody is named."""

DEVIATIONS = 5.0
"""Median absolute deviations above the median: 3.5 in the modified z-score of Iglewicz and Hoaglin
(How to Detect and Handle Outliers, 1993) are 5.2."""

FLOOR = 0.02
"""Least deviation that is reckoned with, as a share of the median: of two hosts, or of many that
agree, it would be nothing."""

RATIO = 1.2
"""Slower by less is nothing to act upon."""


@dataclass(frozen=True)
class Straggler:
    """Hosts that are slow.

    Attributes:
        hosts: their numbers: one, or those that share a replica and cannot be told apart.
        what: of `TIMES`, what they are slow at.
        ratio: how much longer it takes than elsewhere; for `data` and `dispatch`, how much longer
            the step takes for it.
    """

    hosts: tuple[int, ...]
    what: str
    ratio: float

    def __str__(self) -> str:
        hosts = ", ".join(map(str, self.hosts))
        means = {
            "replay": "takes {:.2f} times as long as others for the same work",
            "data": "waits for its data, and the step takes {:.2f} times as long for it",
            "dispatch": "is slow to start steps, which take {:.2f} times as long for it",
        }
        return f"host {hosts} {means[self.what].format(self.ratio)}"


def outliers(times_s: np.ndarray) -> dict[int, float]:
    """Returns which of some times are far above the others, and how many times the typical one.

    Typical is the low median: of two the shorter, so that of two hosts one can be the slow one.
    """
    typical = _low_median(times_s)
    deviation = max(_low_median(np.abs(times_s - typical)), FLOOR * typical)
    least = max(RATIO * typical, typical + DEVIATIONS * deviation)
    return {i: float(t / typical) for i, t in enumerate(times_s) if t > least and typical > 0}


def _low_median(values: np.ndarray) -> float:
    return float(np.sort(values)[(len(values) - 1) // 2])


class Stragglers:
    """The slow hosts of a run; all processes know the same.

    Args:
        hosts: number of the host of every process.
        groups: processes whose devices share replicas: the replay of one waits for the others'.
    """

    def __init__(self, hosts: Sequence[int], groups: Sequence[Sequence[int]]) -> None:
        self._hosts, self._groups = hosts, groups
        self._recent: deque[np.ndarray] = deque(maxlen=RECENT)
        self.slow: list[Straggler] = []

    def add(self, times_s: np.ndarray) -> list[Straggler]:
        """Takes up what an audit has measured; returns those who have become slow by it.

        Args:
            times_s: [processes, `TIMES`], the replay left out where there is none.
        """
        self._recent.append(times_s)
        before = {(slow.hosts, slow.what) for slow in self.slow}
        if len(self._recent) >= FEWEST:
            self.slow = self._judge(np.median(np.stack(self._recent), axis=0))
        return [slow for slow in self.slow if (slow.hosts, slow.what) not in before]

    def _judge(self, times_s: np.ndarray) -> list[Straggler]:
        by_name = dict(zip(TIMES, times_s.T, strict=False))
        found, step_s = [], _low_median(by_name["step"])
        for what in ("data", "dispatch"):
            own_s = by_name[what]
            # All wait for the slowest: without anybody's own time, the step would take the rest.
            rest_s = max(step_s - own_s.max(), 0.01 * step_s)
            for process, ratio in outliers(rest_s + own_s).items():
                found.append(Straggler((self._hosts[process],), what, ratio))
        if "replay" in by_name:
            replay_s = np.array([by_name["replay"][list(group)].max() for group in self._groups])
            for number, ratio in outliers(replay_s).items():
                hosts = sorted({self._hosts[process] for process in self._groups[number]})
                found.append(Straggler(tuple(hosts), "replay", ratio))
        return found
