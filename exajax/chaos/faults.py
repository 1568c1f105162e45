"""Faults as data: what breaks, where, when and for how long. What injects and simulates shares it.

A schedule is a tuple of faults, drawn from a seed here or read from a file (`faults_file`).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

import numpy as np

Role = Literal["worker", "supervisor", "parent"]
"""Which process of a host is meant; `parent` is the one that started all hosts."""

ROLES: tuple[Role, ...] = ("worker", "supervisor", "parent")

TARGETS = ("any", "leader", "parent")
"""Targets beside the number of a host: one that is drawn, the one that leads, the parent."""

PHASES = (
    "start", "compile", "restore", "step", "evaluate", "callback", "audit", "checkpoint", "end",
)  # fmt: skip
"""What a worker can be at, as it tells itself (`exajax.train.loop.PHASES`)."""

COMMIT = "commit"
"""The moment between the first byte of a checkpoint and the name that makes it one."""


@dataclass(frozen=True)
class Kind:
    """What faults of a kind have in common.

    Attributes:
        signals: whether it is a signal to a process, whose `role` is then to be told.
        inside: whether it happens inside the training process, which does it to itself.
        stepwise: whether all processes must know its moment beforehand, so that it has a step.
        lasts: whether it has a duration: `no`, `yes`, or `maybe`, where none is for ever.
        details: what else can be told of it: name to default, least and most.
    """

    signals: bool = False
    inside: bool = False
    stepwise: bool = False
    lasts: Literal["no", "yes", "maybe"] = "no"
    details: Mapping[str, tuple[float, float, float]] = field(
        default_factory=lambda: MappingProxyType({})
    )


KINDS: Mapping[str, Kind] = MappingProxyType(
    {
        "kill": Kind(signals=True),
        "terminate": Kind(signals=True),
        "stop": Kind(signals=True, lasts="maybe"),
        "lost-coordinator": Kind(),
        "cut-network": Kind(lasts="yes"),
        "slow-host": Kind(lasts="yes", details=MappingProxyType({"share": (0.8, 0.01, 0.99)})),
        "full-disk": Kind(lasts="yes"),
        "truncate": Kind(details=MappingProxyType({"share": (0.5, 0.0, 0.99)})),
        "bit-flip": Kind(details=MappingProxyType({"bits": (1, 1, 1024)})),
        "stuck": Kind(inside=True, lasts="maybe"),
        "slow-disk": Kind(inside=True, lasts="yes"),
        "nan": Kind(inside=True, stepwise=True),
        "flip-parameter": Kind(inside=True, details=MappingProxyType({"bit": (20, 0, 31)})),
    }
)
"""Every kind of fault.

`kill`, `terminate` and `stop` are SIGKILL, SIGTERM and SIGSTOP. A `slow-host` is stopped for a
`share` of the time. `truncate` and `bit-flip` damage the newest proven checkpoint, which is then
read because a worker is killed. `stuck` does not enter its collective, `slow-disk` is late with its
part of a checkpoint, `nan` is a gradient's, `flip-parameter` turns one `bit` of a parameter over.
"""


@dataclass(frozen=True)
class Fault:
    """One fault. It is due once everything holds that is said of when.

    Attributes:
        id: its number in the schedule.
        kind: one of `KINDS`.
        target: number of a host, or one of `TARGETS`.
        role: which process of the target gets a signal.
        at_s: seconds since the start of the job, None if its time is not what makes it due.
        step: number of an update that a worker of the target has come to.
        phase: what the target's worker is at, one of `PHASES` or `COMMIT`.
        duration_s: seconds that it lasts; None is for ever, or it takes no time.
        details: what the kind has beside, by name.
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
        """Whether the training process does it to itself."""
        return KINDS[self.kind].inside

    def detail(self, name: str) -> float:
        """Returns something that the kind has beside, or its default."""
        return self.details.get(name, KINDS[self.kind].details[name][0])

    def host(self, hosts: int, leader: int = 0) -> int:
        """Returns the number of the host that it hits; `any` is the same one every time.

        Args:
            hosts: how many there are.
            leader: which of them leads.
        """
        if isinstance(self.target, int):
            return self.target
        if self.target == "any":
            return int(np.random.default_rng(self.id).integers(hosts))
        return leader


def kills(seed: int, count: int, hosts: int, mean_gap_s: float) -> tuple[Fault, ...]:
    """Returns kills of any process at any moment: every role and every host equally likely.

    Args:
        seed: of the schedule.
        count: how many.
        hosts: how many hosts the job has.
        mean_gap_s: mean of the exponential time between two of them.
    """
    draw = np.random.default_rng(seed)
    times_s = np.cumsum(draw.exponential(mean_gap_s, count))
    roles = [ROLES[i] for i in draw.integers(len(ROLES), size=count)]
    targets = draw.integers(hosts, size=count).tolist()
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
    """Returns independent faults at a constant rate, by time.

    The count over `until_s` is Poisson, and given the count the moments are uniform; see Ross,
    Introduction to Probability Models, section 5.3.

    Args:
        seed: of the schedule, or a generator to draw from.
        hosts: how many there are; every one is hit equally often.
        until_s: length of the schedule in seconds.
        mtbf_s: mean time between failures in seconds, by kind.
        of: whose that mean is: of one host, or of the job with all its hosts.
        duration_s: how long each one lasts, of kinds that do.
    """
    draw = np.random.default_rng(seed)
    found: list[tuple[float, str, int]] = []
    for kind, mean_s in mtbf_s.items():
        expected = until_s / mean_s * (hosts if of == "host" else 1)
        count = int(draw.poisson(expected))
        times_s, targets = draw.uniform(0, until_s, count), draw.integers(hosts, size=count)
        found += zip(times_s.tolist(), [kind] * count, targets.tolist(), strict=True)
    return tuple(
        Fault(
            i, kind, host, at_s=at_s, duration_s=None if KINDS[kind].lasts == "no" else duration_s
        )
        for i, (at_s, kind, host) in enumerate(sorted(found))
    )
