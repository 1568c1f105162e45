"""What became of every injected fault: when it was noticed and overcome, from a run's events."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from exajax.job.local_hosts import GRACE_S
from exajax.resilience.deadlines import FLOOR_S, SILENT, Deadlines
from exajax.resilience.lease import SILENT_S

Event = Mapping[str, Any]

GOING = ("step", "evaluate", "callback", "checkpoint", "end")
"""Phases of a job that has found its way back."""

SLACK_S = 5.0
"""Beside a deadline: until a supervisor has looked, on a machine that is busy."""


@dataclass(frozen=True)
class Trace:
    """How a kind of fault shows.

    Attributes:
        seen: events that notice it, beside those that a process has ended.
        ends: whether it ends a process, so that a new attempt overcomes it; otherwise the job goes
            on by itself.
        back: what shows that it is overcome where it ends none: the next `step`, or `save`.
    """

    seen: tuple[str, ...] = ()
    ends: bool = False
    back: Literal["step", "save"] = "step"


TRACES: Mapping[str, Trace] = {
    "kill": Trace(ends=True),
    "terminate": Trace(("preempted",), ends=True),
    "stop": Trace(("stuck",)),
    "lost-coordinator": Trace(ends=True),
    "cut-network": Trace(("stuck",)),
    "slow-host": Trace(("straggler",)),
    "full-disk": Trace(("checkpoint-failed", "checkpoint-skipped"), back="save"),
    "truncate": Trace(("checkpoint-damaged",), ends=True),
    "bit-flip": Trace(("checkpoint-damaged",), ends=True),
    "stuck": Trace(("stuck",)),
    "slow-disk": Trace(("checkpoint-skipped", "checkpoint-failed"), back="save"),
    "nan": Trace(("bad-step",)),
    "flip-parameter": Trace(("corruption",)),
}

QUIET = ("full-disk", "slow-disk", "slow-host", "truncate", "bit-flip", "nan", "flip-parameter")
"""Kinds that are noticed by what they are, not by a process that ends."""


@dataclass(frozen=True)
class Outcome:
    """What became of a fault.

    Attributes:
        id: its number in the schedule.
        kind: what it was.
        target: the host, or `parent`.
        process: worker, supervisor or parent.
        at_s: when it struck, since the start of the run.
        phase: what the host's worker was at.
        step: the update that it was at or behind.
        committing: whether a checkpoint was half written.
        detected_s: from then until it was noticed, None if it was not.
        recovered_s: from then until the job went on, None if it did not.
        deadline_s: until when it should be noticed; None where it may pass unnoticed, as it was
            over before that.
    """

    id: int
    kind: str
    target: int | str
    process: str
    at_s: float
    phase: str
    step: int
    committing: bool
    detected_s: float | None
    recovered_s: float | None
    deadline_s: float | None

    @property
    def in_time(self) -> bool:
        """Whether it was noticed within its deadline, if it has one."""
        if self.deadline_s is None:
            return True
        return self.detected_s is not None and self.detected_s <= self.deadline_s


def outcomes(
    events: Iterable[Event], started_s: float, deadlines: Deadlines, startup_s: float
) -> list[Outcome]:
    """Returns what became of every fault that was injected.

    Args:
        events: of the run, by time.
        started_s: when it began, in seconds since 1970.
        deadlines: of its training processes.
        startup_s: what it takes to start it again and restore.
    """
    told = list(events)
    lifted = {event["id"]: event["time"] for event in told if event["event"] == "lifted"}
    return [
        _outcome(event, told, lifted.get(event["id"]), started_s, deadlines, startup_s)
        for event in told
        if event["event"] == "injected"
    ]


def _outcome(
    fault: Event,
    events: Sequence[Event],
    lifted: float | None,
    started_s: float,
    deadlines: Deadlines,
    startup_s: float,
) -> Outcome:
    kind, since_s = fault["kind"], fault["time"]
    later = [event for event in events if event["time"] >= since_s]
    detected = next((event for event in later if _notices(event, fault)), None)
    recovered = _recovered(fault, later, detected, lifted)
    limit_s = deadline_s(kind, fault["process"], deadlines, startup_s)
    lasted_s = None if lifted is None else lifted - since_s
    may_pass = kind in ("stop", "cut-network", "slow-host", "slow-disk", "full-disk", "stuck")
    if may_pass and detected is None and lasted_s is not None and lasted_s < limit_s:
        limit = None
    else:
        limit = limit_s
    return Outcome(
        fault["id"],
        kind,
        fault["target"],
        fault["process"],
        round(since_s - started_s, 3),
        fault.get("phase", ""),
        fault.get("step", 0),
        bool(fault.get("committing")),
        None if detected is None else round(detected["time"] - since_s, 3),
        None if recovered is None else round(recovered["time"] - since_s, 3),
        limit,
    )


def _notices(event: Event, fault: Event) -> bool:
    """Returns whether an event notices a fault that came before it."""
    name, kind = event["event"], fault["kind"]
    if name in TRACES[kind].seen:
        return True
    if kind in QUIET:
        return False
    if fault["process"] == "parent":
        return bool(name == "left")
    if name == "job":
        return bool(fault["process"] == "supervisor" and event["host"] == fault["target"])
    if name == "worker-ended":
        return bool(event["host"] == fault["target"])
    return bool(name in ("fault", "left"))


def _recovered(
    fault: Event, later: Sequence[Event], detected: Event | None, lifted: float | None
) -> Event | None:
    """Returns what shows that a job goes on after a fault."""
    trace = TRACES[fault["kind"]]
    if trace.ends:
        return _first(later, lambda e: _goes_on(e) and e["attempt"] > fault["attempt"])
    over_s = max(
        detected["time"] if detected else fault["time"], fault["time"] if lifted is None else lifted
    )
    if fault["kind"] == "stop" and detected:
        over_s = detected["time"]  # whoever is noticed is ended, and does not have to go on
    after = [event for event in later if event["time"] > over_s]
    if trace.back == "save":
        return _first(after, lambda e: e["event"] == "checkpoint-saved")
    return _first(after, _goes_on)


def _goes_on(event: Event) -> bool:
    return bool(event["event"] == "phase" and event["phase"] in GOING)


def _first(events: Iterable[Event], condition: Callable[[Event], bool]) -> Event | None:
    return next((event for event in events if condition(event)), None)


def deadline_s(kind: str, role: str, deadlines: Deadlines, startup_s: float) -> float:
    """Returns how long a fault of a kind may go unnoticed, in seconds.

    Args:
        kind: of the fault.
        role: of the process that it hits.
        deadlines: of the training processes.
        startup_s: what it takes to start again and restore.
    """
    step_s = deadlines.given.get("step", FLOOR_S)
    by_kind = {
        "kill": SILENT_S[True],
        "lost-coordinator": SILENT_S[True],
        "terminate": GRACE_S + SILENT_S[True],
        "stop": deadlines.of(SILENT, []) if role == "worker" else SILENT_S[True],
        "stuck": step_s,
        "cut-network": step_s,
        "slow-host": step_s,
        "full-disk": step_s,
        "slow-disk": step_s,
        "nan": step_s,
        "flip-parameter": step_s,
        "truncate": startup_s,
        "bit-flip": startup_s,
    }
    return by_kind[kind] + SLACK_S
