"""What a compiled step is predicted to do on a cluster: time, memory, and where both go."""

from dataclasses import dataclass
from typing import Any

from exajax import units
from exajax.machine.cluster import Cluster
from exajax.program import compiled_recipe
from exajax.program.compiled import Compiled
from exajax.program.operations import (
    communicated_bytes,
    flatten,
    total_bytes,
    total_flops,
    unknown_loops,
)
from exajax.recipe.recipe import Recipe
from exajax.roofline import roofline
from exajax.simulate import variability
from exajax.simulate.step_report import (
    COMPILED,
    CompiledReport,
    MemoryReport,
    ProgramReport,
    TimeReport,
    XlaEstimate,
)
from exajax.simulate.timeline import Breakdown, lay_out
from exajax.simulate.variability import StepVariability
from exajax.spmd.compiler_options import MEMORY_FRACTION
from exajax.spmd.mesh import idle_note

UNDIVIDED = (
    "XLA does not say what lies in its memory (exajax reads its dumps as of jax 0.10.2 to 0.12.0): "
    "gradients and activations count as temporaries, and the total stands"
)


@dataclass(frozen=True, repr=False)
class Prediction:
    """A simulated step. Every number in it is simulated; nothing is measured.

    Attributes:
        devices: devices of the mesh.
        samples: samples of a step.
        tokens: tokens of a step, patches where samples are images, None where nobody counts.
        model_flops: FLOPs of a step by the model's mathematics, None where nobody counted.
        hardware_flops: FLOPs of matrix products that all devices perform, each as many as the
            busiest (`exajax.models.presets.FLOPS_CONVENTION` says what counts).
        peak_flops: dense peak of one device at the precision of the step, FLOP/s.
        breakdown: where the time of a median step goes.
        variability: how much steps vary (`simulate.variability.of`).
        compiled: the program it was read from.
        cluster: where it would run.
    """

    devices: int
    samples: int
    tokens: int | None
    model_flops: float | None
    hardware_flops: float
    peak_flops: float
    breakdown: Breakdown
    variability: StepVariability
    compiled: Compiled
    cluster: Cluster

    @property
    def step_time_s(self) -> float:
        """Seconds of the median step, which waits for the slowest of all devices."""
        return self.breakdown.total_s

    @property
    def capacity_bytes(self) -> int:
        """Memory of a device that a run may take."""
        chip = self.cluster.chip
        return int(chip.memory_bytes * MEMORY_FRACTION[chip.platform])

    @property
    def fits(self) -> bool:
        """Whether the peak fits a device's memory."""
        return self.compiled.memory.total <= self.capacity_bytes

    def __repr__(self) -> str:
        step = units.show(self.step_time_s, "s")
        return f"<Prediction: {step} a step on {self.devices:,} x {self.cluster.chip.title}>"

    def __str__(self) -> str:
        report = self.report
        rates = [f"{report.samples_per_s:,.1f} samples/s"]
        if report.tokens_per_s:
            rates.append(f"{report.tokens_per_s:,.0f} tokens/s")
        utilization = [f"HFU {self.hfu:.1%}"]
        if self.mfu is not None:
            utilization.insert(0, f"MFU {self.mfu:.1%}")
        memory, varies = report.memory_bytes, self.variability
        total, capacity = units.show(memory.total, "B"), units.show(memory.capacity, "B")
        parts = [f"{name} {units.show(size, 'B')}" for name, size in memory.parts().items()]
        lines = [
            f"simulated on {self.devices:,} x {self.cluster.chip.title} ({self.cluster.title})",
            f"  step    {units.show(self.step_time_s, 's')}; {', '.join(rates)}",
            f"  varies  p95 {units.show(varies.p95_s, 's')}, p99 {units.show(varies.p99_s, 's')}",
            f"  rate    {', '.join(utilization)}",
            f"  time    {report.breakdown_s.shares()}",
            f"  memory  {total} of {capacity} on a device: "
            f"{'fits' if self.fits else 'does not fit'}",
            f"          {', '.join(parts[:4])}",
        ]
        lines += [f"  advice  {advice}" for advice in report.advice or ()]
        return "\n".join([*lines, *(f"  note    {note}" for note in self.notes)])

    def _rate(self, amount: float | None) -> float | None:
        return None if amount is None else amount / self.step_time_s

    def _utilization(self, flops: float | None) -> float | None:
        rate = self._rate(flops)
        return None if rate is None else rate / (self.devices * self.peak_flops)

    @property
    def mfu(self) -> float | None:
        """Model FLOPs a second as a share of the peak, None where nobody counted them."""
        return self._utilization(self.model_flops)

    @property
    def hfu(self) -> float:
        """Hardware FLOPs a second as a share of the peak."""
        return self.hardware_flops / self.step_time_s / (self.devices * self.peak_flops)

    @property
    def idle_axes(self) -> tuple[str, ...]:
        """Mesh axes larger than 1 that divide nothing: their devices repeat the same work."""
        return self.compiled.idle_axes

    @property
    def notes(self) -> tuple[str, ...]:
        """What whoever reads the numbers should know of them."""
        idle = self.idle_axes
        notes = [idle_note(idle, self.compiled.mesh_axes)] if idle else []
        if not self.compiled.memory.divided:
            notes.append(UNDIVIDED)
        return tuple(notes)

    @property
    def report(self) -> CompiledReport:
        """The prediction as a report, which is also its JSON."""
        memory, breakdown = self.compiled.memory, self.breakdown
        model_rate = self._rate(self.model_flops)
        return CompiledReport(
            engine=COMPILED,
            compiled_for=self.cluster.chip.proxy or self.cluster.chip.name,
            proxy=self.cluster.chip.proxy is not None,
            devices=self.devices,
            step_time_s=self.step_time_s,
            samples_per_s=self.samples / self.step_time_s,
            tokens_per_s=self._rate(self.tokens),
            model_tflops_per_device=(
                None if model_rate is None else model_rate / self.devices / 1e12
            ),
            mfu=self.mfu,
            hfu=self.hfu,
            fits=self.fits,
            advice=tuple(memory.shortfall(self.capacity_bytes)),
            idle_axes=self.idle_axes,
            notes=self.notes,
            memory_bytes=MemoryReport(
                parameters=memory.parameters,
                gradients=memory.gradients,
                optimizer=memory.optimizer,
                activations=memory.activations,
                batch=memory.batch,
                temporaries=memory.temporaries,
                total=memory.total,
                capacity=self.capacity_bytes,
            ),
            largest_buffers=memory.largest,
            xla_estimate_s=self._xla_estimate(),
            breakdown_s=TimeReport(
                compute=breakdown.compute,
                memory_bound=breakdown.memory_bound,
                exposed_communication=breakdown.exposed_communication,
                pipeline_bubble=breakdown.pipeline_bubble,
                stragglers=breakdown.stragglers,
                optimizer=breakdown.optimizer,
                other=breakdown.other,
            ),
            variability=self.variability,
            roofline_s=self._roofline_s(),
            hidden_communication_s=breakdown.hidden_communication,
            overlap_slowdown_s=breakdown.slowed,
            program=self._program(),
        )

    def to_json(self) -> dict[str, Any]:
        """The prediction in the form that `exajax simulate --json` promises."""
        return self.report.to_json()

    def _xla_estimate(self) -> XlaEstimate | None:
        """XLA's own estimate of the step time, where it has one."""
        if self.compiled.xla_estimate_s is None:
            return None
        by = "XLA's latency hiding scheduler"
        return XlaEstimate("simulated", by, self.compiled.xla_estimate_s)

    def _roofline_s(self) -> dict[str, float]:
        """Least seconds of the step: all its FLOPs at the peak, all its bytes at the bandwidth."""
        return roofline(
            total_flops(self.compiled.program),
            total_bytes(self.compiled.program),
            self.peak_flops,
            self.cluster.chip.memory_bandwidth,
        ).to_json()

    def _program(self) -> ProgramReport:
        """Figures of the program of one device."""
        program = self.compiled.program
        unpriced = (op.name for op, _ in flatten(program) if op.kind == "unpriced")
        return ProgramReport(
            flops_per_device=total_flops(program),
            bytes_per_device=total_bytes(program),
            communicated_bytes=communicated_bytes(program),
            unpriced=tuple(unpriced),
            loops_of_unknown_length=tuple(unknown_loops(program)),
        )


def predict_recipe(recipe: Recipe, cluster: Cluster) -> Prediction:
    """Prices the step of a recipe whose `zero` is a level: compiled, or read from the store.

    Raises:
        InputError: the mesh is larger than the cluster.
    """
    return predict_step(
        compiled_recipe.load_or_compile(recipe, cluster),
        cluster,
        recipe.precision,
        samples=recipe.global_batch,
        tokens_per_sample=recipe.seq,
        model_flops=recipe.flops,
    )


def predict_step(
    compiled: Compiled,
    cluster: Cluster,
    precision: str,
    *,
    samples: int,
    tokens_per_sample: int | None,
    model_flops: float | None,
) -> Prediction:
    """Prices a compiled step on a cluster.

    Args:
        compiled: the step, compiled for the cluster's chip.
        cluster: where it would run.
        precision: what it computes in, a key of the chip's peaks.
        samples: samples of a step.
        tokens_per_sample: tokens in a sample, None where nobody counts.
        model_flops: FLOPs of a step by the model's mathematics, None where nobody counted.

    Raises:
        InputError: the mesh is larger than the cluster.
    """
    cluster.check(compiled.devices, precision)
    spent = lay_out(compiled.program, cluster, compiled.bubble)
    varies = variability.of(spent, compiled.devices, cluster)
    spent.stragglers = max(0.0, varies.p50_s - spent.total_s)
    return Prediction(
        devices=compiled.devices,
        samples=samples,
        tokens=None if tokens_per_sample is None else samples * tokens_per_sample,
        model_flops=model_flops,
        hardware_flops=total_flops(compiled.program) * compiled.devices,
        peak_flops=cluster.chip.peak(precision),
        breakdown=spent,
        variability=varies,
        compiled=compiled,
        cluster=cluster,
    )
