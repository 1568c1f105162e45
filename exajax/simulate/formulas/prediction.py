"""The analytic engine's prediction of a recipe."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from exajax.errors import InputError
from exajax.machine.cluster import Cluster
from exajax.recipe.recipe import Recipe
from exajax.simulate.formulas import engine
from exajax.simulate.formulas.shared.layouts import Layouts
from exajax.simulate.formulas.shared.results import Footprint, Times
from exajax.simulate.formulas.shared.work import Work, with_program
from exajax.simulate.formulas.xla.figures import EXPERT_CAPACITY, xla_figures
from exajax.simulate.formulas.xla.hardware_flops import hardware_flops
from exajax.simulate.step_report import ANALYTIC, MemoryReport, StepReport, TimeReport
from exajax.spmd.compiler_options import MEMORY_FRACTION
from exajax.spmd.mesh import MeshSpec

OURS = "jax"
"""The program of exajax's own training step (`SoftwareProfile.program`)."""


def ours(cluster: Cluster) -> Cluster:
    """A machine that runs exajax's own training step, with the factors of its software profile."""
    return with_program(cluster, OURS)


def capacity_bytes(cluster: Cluster) -> int:
    """Memory of a device that a run may use."""
    return int(cluster.chip.memory_bytes * MEMORY_FRACTION[cluster.chip.platform])


def fits_margin() -> float:
    """Share of its memory that a layout needs to spare, since formulas may be short by it."""
    return xla_figures().memory.fits_margin


def provenance_of_engine() -> dict[str, Any]:
    """What the provenance of a prediction says of this engine."""
    return {"engine": ANALYTIC, "kind": "simulated", "formulas": engine.figures_of(OURS)}


@dataclass(frozen=True)
class FormulaPrediction:
    """A simulated step in closed formulas. Every number in it is simulated; nothing is measured.

    Attributes:
        recipe: what would be trained.
        cluster: where.
        times: time of this one layout.
        memory: its memory.
    """

    recipe: Recipe
    cluster: Cluster
    times: Times
    memory: Footprint

    @property
    def step_time_s(self) -> float:
        """Seconds of the median step."""
        return float(self.times.step_s[0])

    @property
    def total_bytes(self) -> int:
        """Bytes of a device at the peak."""
        return int(self.memory.total[0])

    @property
    def fits(self) -> bool:
        """Whether the peak fits a device's memory with the margin to spare."""
        return self.total_bytes * (1 + fits_margin()) <= capacity_bytes(self.cluster)

    @property
    def report(self) -> StepReport:
        """The prediction as a report, which is also its JSON."""
        recipe, step_s = self.recipe, self.step_time_s
        devices = recipe.mesh.devices
        flash = recipe.flash(self.cluster.chip.platform)
        hardware = hardware_flops(recipe, flash=flash)
        peak = self.cluster.chip.peak(recipe.precision) * devices
        kinds = ("parameters", "gradients", "optimizer", "activations", "temporaries")
        memory = {kind: int(getattr(self.memory, kind)[0]) for kind in kinds}
        return StepReport(
            engine=ANALYTIC,
            proxy=self.cluster.chip.proxy is not None,
            model=recipe.model.name,
            mesh=str(recipe.mesh),
            zero=recipe.zero,
            devices=devices,
            step_time_s=step_s,
            samples_per_s=recipe.global_batch / step_s,
            tokens_per_s=recipe.tokens / step_s,
            model_tflops_per_device=recipe.flops / step_s / devices / 1e12,
            mfu=recipe.flops / step_s / peak,
            hfu=hardware / step_s / peak,
            fits=self.fits,
            fits_margin=fits_margin(),
            memory_bytes=MemoryReport(
                **memory, total=sum(memory.values()), capacity=capacity_bytes(self.cluster)
            ),
            breakdown_s=_time_report(self.times, recipe.mesh, recipe.zero),
        )

    def to_json(self) -> dict[str, Any]:
        """The prediction in the form that `exajax simulate --json` promises."""
        return self.report.to_json()


def predict(recipe: Recipe, cluster: Cluster) -> FormulaPrediction:
    """The analytic engine's prediction of a recipe whose `zero` is a level.

    Raises:
        InputError: it has an option that the engine does not know.
    """
    _check_known(recipe)
    cluster = ours(cluster)
    layouts = Layouts.of_recipes([recipe], flash=recipe.flash(cluster.chip.platform))
    times, memory = engine.step(Work.of(recipe, cluster), layouts)
    return FormulaPrediction(recipe, cluster, times, memory)


def _check_known(recipe: Recipe) -> None:
    for flag, given, known in (
        ("optimizer", recipe.optimizer, "adamw"),
        ("packed", recipe.packed, False),
        ("moe", recipe.moe if recipe.model.experts else "capacity", "capacity"),
        ("capacity_factor", recipe.capacity_factor, EXPERT_CAPACITY),
    ):
        if given != known:
            raise InputError(
                flag,
                f"the analytic engine knows {known} alone, and it is {given}",
                "give `engine` compiled",
            )
    if not recipe.model.is_text and recipe.mesh.context > 1:
        raise InputError(
            "mesh",
            f"context={recipe.mesh.context} for images, whose attention is of all patches, is not "
            "known to the analytic engine",
            "give `engine` compiled, or leave context out",
        )


def _time_report(times: Times, mesh: MeshSpec, zero: int | str) -> TimeReport:
    """Where the seconds of one layout go, exposed communication by mesh axes."""

    def axes(*names: str) -> str:
        return "+".join(name for name in names if getattr(mesh, name) > 1)

    exposed: dict[str, float] = {}
    for names, column in (
        (("model",), times.tensor),
        (("context",), times.context),
        (("expert",), times.expert),
        (("data", "fsdp") if zero == 3 else ("fsdp",), times.shards),
        (("data", "fsdp", "expert", "context"), times.gradients),
        (("pipe",), times.stages),
    ):
        key, seconds = axes(*names), float(np.atleast_1d(column)[0])
        if seconds > 0:
            exposed[key or names[0]] = exposed.get(key or names[0], 0.0) + seconds
    return TimeReport(
        compute=float(times.compute[0]),
        memory_bound=float(times.memory_bound[0]),
        exposed_communication=exposed,
        pipeline_bubble=float(times.bubble[0]),
        stragglers=float(times.stragglers[0]),
        optimizer=float(times.optimizer[0]),
        other=float(times.other[0]),
    )
