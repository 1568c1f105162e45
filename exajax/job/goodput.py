"""Where the time of a run went, from its events alone: useful, made again, saving, stalled, ...

The first process of every attempt writes what it turns to, with every step (`phase`); supervisors
write when attempts begin and end. Both cut the time of a run into spans, and each span is counted
once, under one name. The rules, for a span that begins with a phase:

| it begins with | it counts as |
|---|---|
| `step`, a number that was never made before | useful |
| `step`, a number that was made before | recomputed |
| `compile`, `checkpoint`, `evaluate` | compile, checkpoint, evaluation |
| `start`, `restore`, or no phase yet | start in the first attempt of a job, else restart |
| `callback`, `audit`, `end` | other |

What an attempt was at when its end cut it off was for nothing: as much of it as this phase had
taken before (the median) counts under the phase, a step under recomputed, and the rest was spent
waiting for something that hung: stalled. A phase that had never ended before is stalled if it was
reported stuck. From the end that a supervisor saw to the next
phase it is restart. Nothing is counted between two jobs: whoever gives a command the next day has
not lost a night. Useful are only steps that something came after, so that a history without its
tail never shows more.
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
"""What wall time is lost to."""

ENDINGS = ("attempt", "fault", "host-lost", "job", "worker-ended")
"""Events of supervisors that an attempt does not outlive, if none of its phases follows."""


@dataclass(frozen=True)
class Goodput:
    """Seconds of a run by what they went to; all but `away_s` are the wall time of its jobs.

    Attributes:
        useful_s: making steps for the first time.
        recomputed_s: making steps that a restart or a roll back had undone.
        checkpoint_s: training waits for a checkpoint.
        restart_s: from the end of an attempt to the first step of the next, without compiling.
        compile_s: compiling, in every attempt.
        stalled_s: something hung, until that was noticed.
        start_s: from the command to the first step, without compiling.
        evaluation_s: on held-out data.
        other_s: callbacks, and the way out.
        away_s: between jobs, outside of the wall time.
        steps: made for the first time.
        replayed_steps: made again.
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
        """Returns the shares, the seconds and the steps."""
        return {"ratio": self.ratio, "wall_s": self.wall_s} | dataclasses.asdict(self)

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> "Goodput":
        """Returns what `to_json` was called on."""
        return cls(**{field.name: found[field.name] for field in dataclasses.fields(cls)})

    def describe(self) -> str:
        """Returns one line, the largest losses first."""
        if self.ratio is None:
            return "goodput: no event was written"
        lost = sorted(self.lost_s.items(), key=lambda item: -item[1])
        parts = [("useful", self.useful_s), *(item for item in lost if item[1] >= 0.05)]
        shown = ", ".join(f"{name} {seconds:,.1f} s" for name, seconds in parts)
        again = f"; {self.replayed_steps:,} steps made again" if self.replayed_steps else ""
        return f"goodput {self.ratio:.1%} of {self.wall_s:,.1f} s: {shown}{again}"


def account(run_dir: Path, damaged: Callable[[str], None] = lambda problem: None) -> Goodput:
    """Returns where the time of a run went so far.

    Args:
        run_dir: the run folder.
        damaged: called with a line of text for every file of events that is damaged.
    """
    return total(read_events(run_dir, damaged))


def total(events: Iterable[Mapping[str, Any]]) -> Goodput:
    """Returns where the time of a run went.

    Args:
        events: its events by time, as `read_events` returns them; any number may be missing.
    """
    accountant = Accountant()
    for event in events:
        accountant.take(event)
    return accountant.total()


@dataclass(frozen=True)
class _Phase:
    """What the first process of an attempt has turned to, and when."""

    name: str
    step: int
    attempt: int
    since_s: float


class Accountant:
    """Takes the events of a run one by one, by time, and says at any moment where time went."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = collections.defaultdict(float)
        self._steps: dict[str, int] = collections.defaultdict(int)
        self._usual_s: dict[str, collections.deque[float]] = {}
        self._newest = 0  # step that was ever made
        self._job: Any = None
        self._last_s: float | None = None
        self._begin_job()

    def _begin_job(self) -> None:
        self._speaks = 0  # host whose process writes every step
        self._between = "start"  # what time counts as while no step is being made
        self._counted_s: float | None = None
        self._now: _Phase | None = None
        self._ending_s: float | None = None
        self._stuck = False

    def take(self, event: Mapping[str, Any]) -> None:
        """Takes the next event; those of `exajax chaos` are not of the run."""
        if event["role"] == "chaos":
            return
        now_s, what = float(event["time"]), event["event"]
        if self._begins_job(event):
            self._settle()
            self._seconds["away"] += now_s - (self._last_s or now_s)
            self._begin_job()
            self._job = event.get("job")
        self._counted_s = now_s if self._counted_s is None else self._counted_s
        self._last_s = now_s
        if what == "attempt" and event.get("members"):
            self._speaks = event["members"][0]
        if what == "phase" and event["role"] == "worker" and event["host"] == self._speaks:
            self._turn(_Phase(event["phase"], event["step"], event["attempt"], now_s))
        elif what == "stuck":
            self._stuck = True
        elif what in ENDINGS and self._ending_s is None:
            self._ending_s = now_s

    def total(self) -> Goodput:
        """Returns where time went up to the last event."""
        end = copy.deepcopy(self)
        end._settle()
        return Goodput(
            **{f"{kind}_s": seconds for kind, seconds in end._seconds.items()},
            steps=end._steps["useful"],
            replayed_steps=end._steps["recomputed"],
        )

    def _begins_job(self, event: Mapping[str, Any]) -> bool:
        """A supervisor says so; without one it is the start of a process, whose attempt is 0."""
        if self._last_s is None:
            return True
        if event["event"] == "job":
            return event.get("job") != self._job
        return event["event"] == "phase" and event["phase"] == "start" and not event["attempt"]

    def _turn(self, turned: _Phase) -> None:
        if self._now and self._now.attempt == turned.attempt:
            self._finish(self._now, turned.since_s)
        else:
            self._abandon(turned.since_s)
        self._now, self._ending_s, self._stuck = turned, None, False

    def _finish(self, phase: _Phase, end_s: float) -> None:
        """Counts a phase that another one of the same attempt came after."""
        usual_s = self._usual_s.setdefault(phase.name, collections.deque(maxlen=1000))
        usual_s.append(end_s - phase.since_s)
        if phase.name != "step":
            self._count(self._kind(phase), end_s)
            return
        kind = "useful" if phase.step > self._newest else "recomputed"
        self._newest = max(self._newest, phase.step)
        self._between = "restart"
        self._steps[kind] += 1
        self._count(kind, end_s)

    def _abandon(self, end_s: float) -> None:
        """Counts what no phase of the same attempt came after, and the time since its end."""
        phase = self._now
        if phase:
            over_s = end_s if self._ending_s is None else self._ending_s
            self._cut_off(phase, over_s)
            self._between = "restart"
        self._count(self._between, end_s)

    def _cut_off(self, phase: _Phase, over_s: float) -> None:
        """Counts a phase that hung or was killed."""
        own_s = over_s - phase.since_s
        usual_s = self._usual_s.get(phase.name)
        if usual_s:
            own_s = min(own_s, statistics.median(usual_s))
        elif self._stuck:
            own_s = 0.0
        kind = "recomputed" if phase.name == "step" else self._kind(phase)
        self._count(kind, phase.since_s + own_s)
        self._count(kind if phase.name == "end" else "stalled", over_s)

    def _kind(self, phase: _Phase) -> str:
        """Returns what a phase that makes no step counts as."""
        if phase.name in ("start", "restore"):
            return self._between
        return COUNTED_AS.get(phase.name, "other")

    def _settle(self) -> None:
        """Counts the time up to the last event."""
        if self._last_s is None:
            return
        if self._now and self._now.name == "end":
            self._count("other", self._last_s)
        else:
            self._abandon(self._last_s)

    def _count(self, kind: str, end_s: float) -> None:
        assert self._counted_s is not None
        self._seconds[kind] += end_s - self._counted_s
        self._counted_s = end_s
