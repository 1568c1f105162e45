"""The outcome of every injected fault: when it was detected and recovered from, from the events."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from exajax.chaos.faults import KINDS
from exajax.job.local_hosts import GRACE_S
from exajax.resilience.deadlines import FLOOR_S, SILENT, Deadlines
from exajax.resilience.lease import SILENT_S

RECOVERED_PHASES = ("step", "evaluate", "callback", "checkpoint", "end")
"""Phases of a job that trains again."""

SLACK_S = 5.0
"""Seconds added to a deadline: until a supervisor has looked, on a busy machine."""


@dataclass(frozen=True)
class Outcome:
    """The outcome of one fault.

    Attributes:
        id: its number in the schedule.
        kind: its kind, one of `exajax.chaos.faults.KINDS`.
        target: number of the host, or `parent`.
        process: `worker`, `supervisor` or `parent`.
        at_s: when it was injected, seconds since the start of the run.
        phase: the phase of the host's worker at that moment.
        step: the current or last update of that worker.
        committing: whether a checkpoint was being written.
        detected_s: seconds from then until it was detected, None if it was not.
        recovered_s: seconds from then until the job trained again, None if it did not.
        deadline_s: seconds within which it should be detected; None where it need not be, because
            it was over before that.
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
        """Whether it was detected within its deadline, if it has one."""
        if self.deadline_s is None:
            return True
        return self.detected_s is not None and self.detected_s <= self.deadline_s


def outcomes(
    events: Iterable[Mapping[str, Any]], started_s: float, deadlines: Deadlines, startup_s: float
) -> list[Outcome]:
    """The outcomes of all faults that were injected into a run.

    Args:
        events: of the run and of the injector, sorted by time.
        started_s: start of the run, in seconds since 1970.
        deadlines: of its training processes.
        startup_s: seconds that a restart takes to restore and train.
    """
    log = list(events)
    lifted_s = {event["id"]: event["time"] for event in log if event["event"] == "lifted"}
    return [
        _outcome(
            event,
            [later for later in log if later["time"] >= event["time"]],
            lifted_s.get(event["id"]),
            started_s,
            deadline_s(event["kind"], event["process"], deadlines, startup_s),
        )
        for event in log
        if event["event"] == "injected"
    ]


def _outcome(
    fault: Mapping[str, Any],
    later: Sequence[Mapping[str, Any]],
    lifted_s: float | None,
    started_s: float,
    limit_s: float,
) -> Outcome:
    """The outcome of one fault, from the events after it."""
    kind, since_s = fault["kind"], fault["time"]
    detected = next((event for event in later if _detects(event, fault)), None)
    recovered = _recovery(fault, later, detected, lifted_s)
    over_before = lifted_s is not None and lifted_s - since_s < limit_s
    may_pass = KINDS[kind].lasts != "no" and detected is None and over_before
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
        None if may_pass else limit_s,
    )


def _detects(event: Mapping[str, Any], fault: Mapping[str, Any]) -> bool:
    """Whether an event detects a fault that was injected before it."""
    name, kind = event["event"], KINDS[fault["kind"]]
    if name in kind.events:
        return True
    if not kind.any_event:
        return False
    if fault["process"] == "parent":
        return bool(name == "left")
    if name == "job":
        return bool(fault["process"] == "supervisor" and event["host"] == fault["target"])
    if name == "worker-ended":
        return bool(event["host"] == fault["target"])
    return bool(name in ("fault", "left"))


def _recovery(
    fault: Mapping[str, Any],
    later: Sequence[Mapping[str, Any]],
    detected: Mapping[str, Any] | None,
    lifted_s: float | None,
) -> Mapping[str, Any] | None:
    """The event that shows that the job trains again after a fault."""
    kind = KINDS[fault["kind"]]
    if kind.restarts:
        return _first(later, lambda e: _trains(e) and e["attempt"] > fault["attempt"])
    over_s = max(
        detected["time"] if detected else fault["time"],
        fault["time"] if lifted_s is None else lifted_s,
    )
    if fault["kind"] == "stop" and detected:
        over_s = detected["time"]  # a stopped process is killed when it is detected
    after = [event for event in later if event["time"] > over_s]
    if kind.recovers_by == "save":
        return _first(after, lambda e: e["event"] == "checkpoint-saved")
    return _first(after, _trains)


def _trains(event: Mapping[str, Any]) -> bool:
    return bool(event["event"] == "phase" and event["phase"] in RECOVERED_PHASES)


def _first(
    events: Iterable[Mapping[str, Any]], condition: Callable[[Mapping[str, Any]], bool]
) -> Mapping[str, Any] | None:
    return next((event for event in events if condition(event)), None)


def deadline_s(kind: str, role: str, deadlines: Deadlines, startup_s: float) -> float:
    """Seconds within which a fault should be detected.

    Args:
        kind: of the fault.
        role: of the process that it hits.
        deadlines: of the training processes.
        startup_s: seconds that a restart takes to restore and train.
    """
    lease_s = SILENT_S[True]
    limits_s = {
        "lease": lease_s,
        "grace": GRACE_S + lease_s,
        "heartbeat": deadlines.of(SILENT, []) if role == "worker" else lease_s,
        "step": deadlines.given.get("step", FLOOR_S),
        "restart": startup_s,
    }
    return limits_s[KINDS[kind].deadline] + SLACK_S
