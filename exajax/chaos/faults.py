"""Faults as data: what breaks, where, when and for how long, for injection and for simulation.

A schedule is a tuple of faults, drawn from a seed here or read from a file (`faults_file`).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

import numpy as np

Role = Literal["worker", "supervisor", "parent"]
"""The process of a host that a signal is sent to; `parent` is the one that started all hosts."""

ROLES: tuple[Role, ...] = ("worker", "supervisor", "parent")

TARGETS = ("any", "leader", "parent")
"""Targets besides the number of a host: a random host, the host that leads, the parent."""

COMMIT = "commit"
"""A moment for faults besides `PHASES`: while a checkpoint is being written and does not count."""


@dataclass(frozen=True)
class FaultKind:
    """The properties that all faults of a kind share.

    Attributes:
        signals: whether it is a signal to a process, which the fault's `role` chooses.
        inside: whether the training process inflicts it on itself.
        stepwise: whether all processes must know its moment in advance, which is then a `step`.
        lasts: whether it has a duration: `no`, `yes`, or `maybe`, where none means for ever.
        details: its parameters: name to default, least and most.
        events: names of the events that detect it.
        any_event: whether the end of a process or an attempt detects it as well.
        restarts: whether a new attempt recovers from it; otherwise the same attempt does.
        recovers_by: the event that shows recovery within the attempt: the next `step` or `save`.
        deadline: what its detection waits for, as of `exajax.chaos.outcome.deadline_s`.
    """

    signals: bool = False
    inside: bool = False
    stepwise: bool = False
    lasts: Literal["no", "yes", "maybe"] = "no"
    details: Mapping[str, tuple[float, float, float]] = field(
        default_factory=lambda: MappingProxyType({})
    )
    events: tuple[str, ...] = ()
    any_event: bool = False
    restarts: bool = False
    recovers_by: Literal["step", "save"] = "step"
    deadline: Literal["lease", "grace", "heartbeat", "step", "restart"] = "step"


def _details(**bounds: tuple[float, float, float]) -> Mapping[str, tuple[float, float, float]]:
    return MappingProxyType(bounds)


_SAVES = ("checkpoint-failed", "checkpoint-skipped")
_DAMAGE = ("checkpoint-damaged",)

KINDS: Mapping[str, FaultKind] = MappingProxyType(
    {
        # SIGKILL, SIGTERM and SIGSTOP
        "kill": FaultKind(signals=True, any_event=True, restarts=True, deadline="lease"),
        "terminate": FaultKind(
            signals=True, events=("preempted",), any_event=True, restarts=True, deadline="grace"
        ),
        "stop": FaultKind(
            signals=True, lasts="maybe", events=("stuck",), any_event=True, deadline="heartbeat"
        ),
        # SIGKILL to the process that the others have joined
        "lost-coordinator": FaultKind(any_event=True, restarts=True, deadline="lease"),
        "cut-network": FaultKind(lasts="yes", events=("stuck",), any_event=True),
        # a worker that is stopped for a share of the time
        "slow-host": FaultKind(
            lasts="yes", details=_details(share=(0.8, 0.01, 0.99)), events=("straggler",)
        ),
        "full-disk": FaultKind(lasts="yes", events=_SAVES, recovers_by="save"),
        # damage to the newest finished checkpoint; a worker is killed so that it is read
        "truncate": FaultKind(
            details=_details(share=(0.5, 0.0, 0.99)),
            events=_DAMAGE,
            restarts=True,
            deadline="restart",
        ),
        "bit-flip": FaultKind(
            details=_details(bits=(1, 1, 1024)), events=_DAMAGE, restarts=True, deadline="restart"
        ),
        # a process that does not enter its next collective
        "stuck": FaultKind(inside=True, lasts="maybe", events=("stuck",), any_event=True),
        # a process that is late with its part of a checkpoint
        "slow-disk": FaultKind(inside=True, lasts="yes", events=_SAVES, recovers_by="save"),
        # a NaN in the loss and the gradient
        "nan": FaultKind(inside=True, stepwise=True, events=("bad-step",)),
        # a flipped bit of a parameter, in one device's memory
        "flip-parameter": FaultKind(
            inside=True, details=_details(bit=(20, 0, 31)), events=("corruption",)
        ),
    }
)
"""Every kind of fault, by the name that schedules use."""


@dataclass(frozen=True)
class Fault:
    """One fault of a schedule. It is due once `at_s`, `step` and `phase`, where given, all hold.

    Attributes:
        id: its number in the schedule.
        kind: one of `KINDS`.
        target: number of a host, or one of `TARGETS`.
        role: the process of the target that gets a signal.
        at_s: least seconds since the start of the job.
        step: least update that a worker of the target has reached.
        phase: phase of the target's worker, one of `PHASES` or `COMMIT`.
        duration_s: seconds that it lasts; None is for ever, or for a kind without duration.
        details: parameters of the kind, by name.
    """

    id: int
    kind: str
    target: int | str = "any"
    role: Role = "worker"
    at_s: float | None = None
    step: int | None = None
    phase: str | None = None
    duration_s: float | None = None
    details: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))

    @property
    def inside(self) -> bool:
        """Whether the training process inflicts it on itself."""
        return KINDS[self.kind].inside

    def detail(self, name: str) -> float:
        """The value of a parameter of the kind, or its default."""
        return self.details.get(name, KINDS[self.kind].details[name][0])

    def host(self, hosts: int, leader: int = 0) -> int:
        """The number of the host that it hits; `any` is drawn with the fault's number as the seed.

        Args:
            hosts: number of hosts of the job.
            leader: number of the host that leads.
        """
        if isinstance(self.target, int):
            return self.target
        if self.target == "any":
            return int(np.random.default_rng(self.id).integers(hosts))
        return leader


def kills(seed: int, count: int, hosts: int, mean_gap_s: float) -> tuple[Fault, ...]:
    """A schedule of kills of any process at any moment, every role and host equally likely.

    Args:
        seed: of the schedule.
        count: number of kills.
        hosts: number of hosts of the job.
        mean_gap_s: mean of the exponentially distributed time between two kills, seconds.
    """
    generator = np.random.default_rng(seed)
    times_s = np.cumsum(generator.exponential(mean_gap_s, count))
    roles = [ROLES[i] for i in generator.integers(len(ROLES), size=count)]
    targets = generator.integers(hosts, size=count).tolist()
    return tuple(
        Fault(i, "kill", "parent" if role == "parent" else target, role, round(float(at_s), 3))
        for i, (at_s, role, target) in enumerate(zip(times_s, roles, targets, strict=True))
    )


def poisson(
    seed: int | np.random.Generator,
    hosts: int,
    until_s: float,
    mtbf_s: Mapping[str, float],
    *,
    of: Literal["host", "job"] = "host",
    duration_s: float | None = None,
) -> tuple[Fault, ...]:
    """A schedule of independent faults at a constant rate (a Poisson process), sorted by time.

    The count over `until_s` has a Poisson distribution, and given the count the times are uniform;
    see Ross, Introduction to Probability Models, section 5.3.

    Args:
        seed: of the schedule, or a generator to draw from.
        hosts: number of hosts; all are hit equally often.
        until_s: length of the schedule in seconds.
        mtbf_s: mean time between failures in seconds, by kind.
        of: whether that mean is of one host, or of the job with all its hosts.
        duration_s: duration of faults of kinds that last.
    """
    generator = np.random.default_rng(seed)
    drawn: list[tuple[float, str, int]] = []
    for kind, mean_s in mtbf_s.items():
        expected = until_s / mean_s * (hosts if of == "host" else 1)
        count = int(generator.poisson(expected))
        times_s = generator.uniform(0, until_s, count)
        targets = generator.integers(hosts, size=count)
        drawn += zip(times_s.tolist(), [kind] * count, targets.tolist(), strict=True)
    return tuple(
        Fault(
            i, kind, host, at_s=at_s, duration_s=None if KINDS[kind].lasts == "no" else duration_s
        )
        for i, (at_s, kind, host) in enumerate(sorted(drawn))
    )
