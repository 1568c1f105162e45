"""The report of one simulated training step, of the same type from either engine.

`StepReport.to_json` is the form that `exajax simulate --json` promises, with the fields' names as
keys; `parse` reads what another process has printed. Every number is simulated, none is measured.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from exajax.files import schema
from exajax.program.memory import Buffer
from exajax.simulate.roofs import Row
from exajax.simulate.variability import StepVariability

COMPILED, ANALYTIC = "compiled", "analytic"

LEAST_SHARE = 0.005
"""Share of a total below which a part of it is not printed."""


def _if_known() -> Any:
    """A field that JSON leaves out while it is None."""
    return field(default=None, metadata={"left_out_if_none": True})


@dataclass(frozen=True, kw_only=True)
class MemoryReport:
    """Bytes on one device at the peak of a step; all but `total` and `capacity` add up to `total`.

    Attributes:
        parameters: parameters that the optimizer updates.
        gradients: gradients, and sums of them over micro-batches.
        optimizer: optimizer state.
        activations: what the forward pass saves for the backward pass.
        batch: inputs of the step; None where the engine does not tell them apart.
        temporaries: work space, and copies of parameters.
        total: the peak.
        capacity: what a run may use of the device.
    """

    parameters: int
    gradients: int
    optimizer: int
    activations: int
    batch: int | None = _if_known()
    temporaries: int
    total: int
    capacity: int

    def parts(self) -> dict[str, int]:
        """Bytes by what they hold, without `total` and `capacity`, the largest first."""
        sizes = {
            name: value
            for name, value in dataclasses.asdict(self).items()
            if name not in ("total", "capacity") and value is not None
        }
        return dict(sorted(sizes.items(), key=lambda part: -part[1]))


@dataclass(frozen=True, kw_only=True)
class TimeReport:
    """Seconds of a step by what they go to; every second is counted once.

    Attributes:
        compute: matrix products and attention.
        memory_bound: operations limited by memory bandwidth.
        exposed_communication: collectives that nothing overlaps with, by mesh axes.
        pipeline_bubble: pipeline slots in which a stage has no micro-batch.
        stragglers: waiting for the slowest of all devices.
        optimizer: the update of the parameters.
        other: launches, and the host.
    """

    compute: float
    memory_bound: float
    exposed_communication: Mapping[str, float]
    pipeline_bubble: float
    stragglers: float
    optimizer: float
    other: float

    def parts(self) -> dict[str, float]:
        """Seconds by name, with one entry for each entry of `exposed_communication`."""
        seconds = {
            name: value
            for name, value in dataclasses.asdict(self).items()
            if name != "exposed_communication"
        }
        exposed = self.exposed_communication.items()
        return seconds | {exposed_name(axes): value for axes, value in exposed}

    def shares(self) -> str:
        """The parts in words, as shares of the step, the longest first."""
        parts = self.parts()
        total_s = sum(parts.values())
        return ", ".join(
            f"{name.replace('_', ' ')} {seconds / total_s:.0%}"
            for name, seconds in sorted(parts.items(), key=lambda part: -part[1])
            if seconds >= LEAST_SHARE * total_s
        )


def exposed_name(axes: str) -> str:
    """What exposed communication over some mesh axes, such as `data+fsdp`, is called in print."""
    if axes == "host":
        return "exposed copies to and from the host"
    return f"exposed communication ({axes} {'axes' if '+' in axes else 'axis'})"


@dataclass(frozen=True, kw_only=True)
class StepReport:
    """What one step of a recipe or program is predicted to do.

    Attributes:
        engine: `COMPILED` or `ANALYTIC`.
        proxy: whether the chip is priced by another chip's program or efficiencies.
        model: name of the model; None for a program that no recipe describes.
        mesh: the mesh as text; None without a recipe.
        zero: the level of ZeRO; None without a recipe.
        devices: devices of the mesh.
        step_time_s: seconds of the median step.
        samples_per_s: sequences a second over all devices.
        tokens_per_s: tokens a second over all devices; None where tokens are not counted.
        model_tflops_per_device: model TFLOP/s of each device; None where the model's FLOPs are not
            known.
        mfu: model FLOPs a second over the peak; None where they are not known.
        hfu: hardware FLOPs a second over the peak.
        fits: whether the peak of memory, with `fits_margin` on top, is within the capacity.
        fits_margin: share added to the peak of the formulas, which may be that much too low; None
            for the compiler's own peak.
        memory_bytes: peak memory of a device, by what it holds.
        breakdown_s: where the step's time goes.
        advice: what to change where it does not fit.
        provenance: what the numbers follow from (`job.provenance`).
    """

    kind: str = "simulated"
    engine: str
    proxy: bool
    model: str | None = _if_known()
    mesh: str | None = _if_known()
    zero: int | str | None = _if_known()
    devices: int
    step_time_s: float
    samples_per_s: float
    tokens_per_s: float | None
    model_tflops_per_device: float | None
    mfu: float | None
    hfu: float
    fits: bool
    fits_margin: float | None = _if_known()
    memory_bytes: MemoryReport
    breakdown_s: TimeReport
    advice: tuple[str, ...] | None = _if_known()
    provenance: Mapping[str, Any] | None = _if_known()

    def to_json(self) -> dict[str, Any]:
        """The report in the form that `exajax simulate --json` promises."""
        plain = _plain(self)
        assert isinstance(plain, dict)
        return plain


@dataclass(frozen=True)
class XlaEstimate:
    """A second opinion on the step time, by XLA's own cost model.

    Attributes:
        kind: `simulated`.
        by: XLA's cost model that made the estimate.
        step_time_s: seconds.
    """

    kind: str
    by: str
    step_time_s: float


@dataclass(frozen=True)
class ProgramReport:
    """Figures of the compiled program of one device.

    Attributes:
        flops_per_device: FLOPs of a step.
        bytes_per_device: bytes that a step reads and writes.
        communicated_bytes: bytes of collectives in a step, by mesh axes and kind.
        unpriced: operations whose time is that of their bytes alone.
        loops_of_unknown_length: loops that are counted once.
    """

    flops_per_device: float
    bytes_per_device: float
    communicated_bytes: Mapping[str, Mapping[str, float]]
    unpriced: tuple[str, ...]
    loops_of_unknown_length: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class CompiledReport(StepReport):
    """The report of the compiled engine, which has read a program.

    Attributes:
        compiled_for: the chip that the program was compiled for.
        idle_axes: mesh axes that divide nothing.
        notes: what a reader of the numbers should know.
        largest_buffers: the largest arrays that are alive at the peak of memory.
        xla_estimate_s: XLA's own estimate, where it has one.
        variability: how much the step time varies.
        roofline_s: least seconds of the step, by peak, by memory bandwidth, and the larger of both.
        roofline: groups of operations against their roofs, the longest first.
        hidden_communication_s: seconds of collectives that overlap with compute, by mesh axes.
        overlap_slowdown_s: seconds that compute loses to collectives that overlap with it.
        program: figures of the program.
    """

    compiled_for: str
    idle_axes: tuple[str, ...]
    notes: tuple[str, ...]
    largest_buffers: tuple[Buffer, ...]
    xla_estimate_s: XlaEstimate | None
    variability: StepVariability
    roofline_s: Mapping[str, float]
    roofline: tuple[Row, ...] | None = _if_known()
    hidden_communication_s: Mapping[str, float]
    overlap_slowdown_s: float
    program: ProgramReport


def parse(printed: str) -> CompiledReport:
    """The report that `exajax simulate --json` has printed; raises `Malformed` if it is none."""
    return schema.decode_record(printed.encode(), CompiledReport)


def _plain(value: Any) -> Any:
    """Dataclasses as dicts, sequences as lists, all the way down."""
    if isinstance(value, Row):
        return value.to_json()
    if dataclasses.is_dataclass(value):
        pairs = ((each, getattr(value, each.name)) for each in dataclasses.fields(value))
        return {
            each.name: _plain(part)
            for each, part in pairs
            if part is not None or not each.metadata.get("left_out_if_none")
        }
    if isinstance(value, Mapping):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(part) for part in value]
    return value
