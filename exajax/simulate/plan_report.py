"""What `exajax plan` finds: layouts ranked by their predicted steps, and what they would cost."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from exajax.simulate.step_report import StepReport


@dataclass(frozen=True)
class Cost:
    """What training on a number of tokens takes.

    Attributes:
        tokens: tokens to train on.
        steps: optimizer steps.
        days: days of the machine, without failures.
        node_hours: hours times nodes.
        device_energy_kwh: energy at the chips' rated power; None where that is not known.
    """

    tokens: float
    steps: int
    days: float
    node_hours: float
    device_energy_kwh: float | None


@dataclass(frozen=True)
class Verified:
    """What the compiled engine predicts for a plan.

    Attributes:
        fits: whether the compiled step fits; False where it cannot be compiled.
        reason: why it cannot be compiled, else empty.
        step_time_s: seconds of a step; the figures are None where it cannot be compiled.
        memory_bytes: bytes of a device at the peak.
        step_time_gap: the plan's step time over the compiled one's, less 1.
        memory_gap: the same of memory.
    """

    fits: bool
    reason: str
    step_time_s: float | None = None
    memory_bytes: int | None = None
    step_time_gap: float | None = None
    memory_gap: float | None = None

    def to_json(self) -> dict[str, Any]:
        """The fields that are known, and the engine."""
        known = {key: value for key, value in asdict(self).items() if value is not None}
        return {"engine": "compiled"} | known


@dataclass(frozen=True)
class Plan:
    """One layout of a model over a machine's devices.

    Attributes:
        report: what is predicted for it.
        options: what is chosen besides the mesh: micro-batch, ZeRO, recomputation, schedule.
        command: the command that trains it.
        cost: what a number of tokens takes, where one was given.
        verified: what the compiled engine predicts, where it was asked.
    """

    report: StepReport
    options: Mapping[str, Any]
    command: str
    cost: Cost | None
    verified: Verified | None = None

    def to_json(self) -> dict[str, Any]:
        """The report's keys, and the plan's own."""
        return {
            **self.report.to_json(),
            "options": dict(self.options),
            "command": self.command,
            "cost": self.cost and asdict(self.cost),
            **({"verified": self.verified.to_json()} if self.verified else {}),
        }


@dataclass(frozen=True)
class Faster:
    """A layout that would be faster than the best one if devices had more memory.

    Attributes:
        step_time_s: seconds of a step.
        memory_bytes: bytes that it needs on a device.
        capacity: bytes that a device has for a run.
        faster_by: the best plan's step time over its own, less 1.
        command: the command that would train it.
    """

    step_time_s: float
    memory_bytes: float
    capacity: int
    faster_by: float
    command: str


@dataclass(frozen=True)
class Plans:
    """The answer of `exajax plan`.

    Attributes:
        cluster: name of the machine.
        devices: devices of every layout.
        evaluated: layouts that were priced.
        fitting: those that fit.
        seconds: how long pricing took.
        plans: the best, the fastest first.
        faster_with_more_memory: what would be faster, the least memory first.
        advice: what to change where nothing fits.
    """

    cluster: str
    devices: int
    evaluated: int
    fitting: int
    seconds: float
    plans: tuple[Plan, ...]
    faster_with_more_memory: tuple[Faster, ...]
    advice: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """The answer in the form that `exajax plan --json` promises."""
        return {
            "kind": "simulated",
            "engine": "analytic",
            "cluster": self.cluster,
            "devices": self.devices,
            "evaluated": self.evaluated,
            "fitting": self.fitting,
            "seconds": self.seconds,
            "plans": [plan.to_json() for plan in self.plans],
            "faster_with_more_memory": [asdict(one) for one in self.faster_with_more_memory],
            "advice": list(self.advice),
        }
