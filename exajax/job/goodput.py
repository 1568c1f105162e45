"""Goodput of a run: its wall time, divided into useful steps and lost time by cause.

It is computed from the run's events alone. The first process of every attempt logs each phase that
it enters, and every step (`phase`); supervisors log when attempts begin and end. These events
divide the time of a run into spans, and each span is counted once:

| the span begins with | it counts as |
|---|---|
| `step`, for the first time | useful |
| `step`, a number that was trained before | recomputed |
| `compile`, `checkpoint`, `evaluate` | compile, checkpoint, evaluation |
| `start`, `restore`, or no phase yet | start in the first attempt of a job, else restart |
| `callback`, `audit`, `end` | other |

The phase in which an attempt ended is divided: the median time of that phase counts under the
phase itself (a step as recomputed, since it is lost), and the rest as stalled, since the process
hung. A phase that never finished before counts as stalled if it was reported stuck. The time from
the end of an attempt, as its supervisor logged it, to the next phase is restart. Time between two
jobs of one run does not count. A step is useful only once another event follows it, so that a log
without its tail never shows a higher goodput.
"""

import collections
import copy
import dataclasses
import statistics
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from exajax.job.events import read_events

COUNTED_AS = {"compile": "compile", "checkpoint": "checkpoint", "evaluate": "evaluation"}
CAUSES = (
    *("recomputed", "checkpoint", "restart", "compile"),
    *("stalled", "start", "evaluation", "other"),
)
"""Causes of lost wall time."""

ENDINGS = ("attempt", "fault", "host-lost", "job", "worker-ended")
"""Events of supervisors that end the attempt before them, unless one of its phases follows."""


@dataclass(frozen=True)
class Goodput:
    """Seconds of a run by use; all but `away_s` add up to the wall time of its jobs.

    Attributes:
        useful_s: steps trained for the first time.
        recomputed_s: steps trained again after a restart or a roll-back.
        checkpoint_s: training waits for a checkpoint.
        restart_s: from the end of an attempt to the first step of the next, without compiling.
        compile_s: compiling, in every attempt.
        stalled_s: a process hung, until that was detected.
        start_s: from the command to the first step, without compiling.
        evaluation_s: evaluation on held-out data.
        other_s: callbacks, audits and shutdown.
        away_s: between jobs, outside of the wall time.
        steps: number of steps trained for the first time.
        replayed_steps: number of steps trained again.
    """

    useful_s: float = 0.0
    recomputed_s: float = 0.0
    checkpoint_s: float = 0.0
    restart_s: float = 0.0
    compile_s: float = 0.0
    stalled_s: float = 0.0
    start_s: float = 0.0
    evaluation_s: float = 0.0
    other_s: float = 0.0
    away_s: float = 0.0
    steps: int = 0
    replayed_steps: int = 0

    @property
    def lost_s(self) -> dict[str, float]:
        """Seconds that were not useful, by cause."""
        return {cause: getattr(self, f"{cause}_s") for cause in CAUSES}

    @property
    def wall_s(self) -> float:
        """Seconds of all jobs, from the first event of each to its last."""
        return self.useful_s + sum(self.lost_s.values())

    @property
    def ratio(self) -> float | None:
        """Useful seconds as a share of the wall time; None if there is none yet."""
        return self.useful_s / self.wall_s if self.wall_s else None

    def to_json(self) -> dict[str, Any]:
        """The goodput, the wall time and all fields, as JSON."""
        return {"ratio": self.ratio, "wall_s": self.wall_s} | dataclasses.asdict(self)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "Goodput":
        """The goodput that `to_json` wrote."""
        return cls(**{field.name: content[field.name] for field in dataclasses.fields(cls)})

    def describe(self) -> str:
        """One line for the terminal, the largest losses first."""
        if self.ratio is None:
            return "goodput: no event was written"
        lost = sorted(self.lost_s.items(), key=lambda item: -item[1])
        parts = [("useful", self.useful_s), *(item for item in lost if item[1] >= 0.05)]
        shown = ", ".join(f"{name} {seconds:,.1f} s" for name, seconds in parts)
        replayed = f"; {self.replayed_steps:,} steps recomputed" if self.replayed_steps else ""
        return f"goodput {self.ratio:.1%} of {self.wall_s:,.1f} s: {shown}{replayed}"


def goodput_of_run(run_dir: Path, damaged: Callable[[str], None] = lambda problem: None) -> Goodput:
    """The goodput of a run up to its last event.

    Args:
        run_dir: the run folder.
        damaged: called with a message for every event file that is damaged.
    """
    return goodput_of_events(read_events(run_dir, damaged))


def goodput_of_events(events: Iterable[Mapping[str, Any]]) -> Goodput:
    """The goodput that a list of events amounts to.

    Args:
        events: sorted by time, as `read_events` returns them; any of them may be missing.
    """
    accountant = Accountant()
    for event in events:
        accountant.add(event)
    return accountant.goodput()


@dataclass(frozen=True)
class _Phase:
    """A phase of the first process of an attempt, from the moment it was entered."""

    name: str
    step: int
    attempt: int
    since_s: float


class Accountant:
    """Goodput computed incrementally: events are added in order of time."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = collections.defaultdict(float)
        self._steps: dict[str, int] = collections.defaultdict(int)
        self._durations_s: dict[str, collections.deque[float]] = {}
        self._newest = 0  # highest step that was ever trained
        self._job: Any = None
        self._last_s: float | None = None
        self._begin_job()

    def _begin_job(self) -> None:
        self._first_host = 0  # whose process logs every step
        self._between_steps = "start"  # or "restart": what `start` and `restore` count as
        self._counted_s: float | None = None
        self._phase: _Phase | None = None
        self._ended_s: float | None = None
        self._stuck = False

    def add(self, event: Mapping[str, Any]) -> None:
        """Adds the next event; those of `exajax chaos` do not belong to the run."""
        if event["role"] == "chaos":
            return
        now_s, name = float(event["time"]), event["event"]
        if self._begins_job(event):
            self._count_to_last_event()
            self._seconds["away"] += now_s - (self._last_s or now_s)
            self._begin_job()
            self._job = event.get("job")
        self._counted_s = now_s if self._counted_s is None else self._counted_s
        self._last_s = now_s
        if name == "attempt" and event.get("members"):
            self._first_host = event["members"][0]
        if name == "phase" and event["role"] == "worker" and event["host"] == self._first_host:
            self._enter(_Phase(event["phase"], event["step"], event["attempt"], now_s))
        elif name == "stuck":
            self._stuck = True
        elif name in ENDINGS and self._ended_s is None:
            self._ended_s = now_s

    def goodput(self) -> Goodput:
        """The goodput up to the last event; more events may be added after it."""
        ended = copy.deepcopy(self)
        ended._count_to_last_event()
        return Goodput(
            **{f"{kind}_s": seconds for kind, seconds in ended._seconds.items()},
            steps=ended._steps["useful"],
            replayed_steps=ended._steps["recomputed"],
        )

    def _begins_job(self, event: Mapping[str, Any]) -> bool:
        """Whether an event is the first of a job.

        Supervisors log a `job` event; an unsupervised process starts with attempt number 0.
        """
        if self._last_s is None:
            return True
        if event["event"] == "job":
            return event.get("job") != self._job
        return event["event"] == "phase" and event["phase"] == "start" and not event["attempt"]

    def _enter(self, phase: _Phase) -> None:
        if self._phase and self._phase.attempt == phase.attempt:
            self._count_finished(self._phase, phase.since_s)
        else:
            self._count_ended_attempt(phase.since_s)
        self._phase, self._ended_s, self._stuck = phase, None, False

    def _count_finished(self, phase: _Phase, end_s: float) -> None:
        """Counts a phase that was followed by another one of the same attempt."""
        durations_s = self._durations_s.setdefault(phase.name, collections.deque(maxlen=1000))
        durations_s.append(end_s - phase.since_s)
        if phase.name != "step":
            self._count(self._kind(phase), end_s)
            return
        kind = "useful" if phase.step > self._newest else "recomputed"
        self._newest = max(self._newest, phase.step)
        self._between_steps = "restart"
        self._steps[kind] += 1
        self._count(kind, end_s)

    def _count_ended_attempt(self, end_s: float) -> None:
        """Counts the last phase of an attempt that has ended, and the time from its end on."""
        phase = self._phase
        if phase:
            self._count_unfinished(phase, end_s if self._ended_s is None else self._ended_s)
            self._between_steps = "restart"
        self._count(self._between_steps, end_s)

    def _count_unfinished(self, phase: _Phase, end_s: float) -> None:
        """Counts a phase that hung or was killed."""
        spent_s = end_s - phase.since_s
        durations_s = self._durations_s.get(phase.name)
        if durations_s:
            spent_s = min(spent_s, statistics.median(durations_s))
        elif self._stuck:
            spent_s = 0.0
        kind = "recomputed" if phase.name == "step" else self._kind(phase)
        self._count(kind, phase.since_s + spent_s)
        self._count(kind if phase.name == "end" else "stalled", end_s)

    def _kind(self, phase: _Phase) -> str:
        """The cause of loss that a phase other than a step counts as."""
        if phase.name in ("start", "restore"):
            return self._between_steps
        return COUNTED_AS.get(phase.name, "other")

    def _count_to_last_event(self) -> None:
        if self._last_s is None:
            return
        if self._phase and self._phase.name == "end":
            self._count("other", self._last_s)
        else:
            self._count_ended_attempt(self._last_s)

    def _count(self, kind: str, end_s: float) -> None:
        assert self._counted_s is not None
        self._seconds[kind] += end_s - self._counted_s
        self._counted_s = end_s
