"""What the analytic engine predicts of a recipe, in the form of `exajax simulate`."""

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np

from exajax.errors import InputError
from exajax.machine.cluster import Cluster
from exajax.recipe.recipe import Recipe
from exajax.simulate.formulas import engine
from exajax.simulate.formulas.engine import Times
from exajax.simulate.formulas.footprint import Footprint, footprint
from exajax.simulate.formulas.hardware_flops import hardware_flops
from exajax.simulate.formulas.layouts import Layouts
from exajax.simulate.formulas.saved import CAPACITY
from exajax.simulate.step_report import ANALYTIC, MemoryReport, StepReport, TimeReport
from exajax.spmd.compiler_options import MEMORY_FRACTION
from exajax.spmd.mesh import MeshSpec


def ours(cluster: Cluster) -> Cluster:
    """Returns a machine with our own training step, whatever program its software profile is of."""
    return dataclasses.replace(
        cluster, software=dataclasses.replace(cluster.software, program="jax")
    )


def capacity_bytes(cluster: Cluster) -> int:
    """Returns the memory of a device that a run may take."""
    return int(cluster.chip.memory_bytes * MEMORY_FRACTION[cluster.chip.platform])


MARGIN = 0.15
"""How much more memory a compiled step may take, as a share of what the formulas say: by so much a
layout has to be below the capacity to fit. The most that the formulas were short of in
`benchmarks/data/engines.json` and `fits.json`: 14.4% (vit-b on data=8, dgx-a100), 10.4% (llama2-7b
on fsdp=16 in fp8), 9.2% (llama3-8b on data=4,context=2)."""


@dataclass(frozen=True)
class Prediction:
    """A simulated step in closed formulas. Every number in it is simulated; nothing is measured.

    Attributes:
        recipe: what would be trained.
        cluster: where.
        times: of this one layout.
        memory: the same.
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
        return self.total_bytes * (1 + MARGIN) <= capacity_bytes(self.cluster)

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
            fits_margin=MARGIN,
            memory_bytes=MemoryReport(
                **memory, total=sum(memory.values()), capacity=capacity_bytes(self.cluster)
            ),
            breakdown_s=_time_report(self.times, recipe.mesh, recipe.zero),
        )

    def to_json(self) -> dict[str, Any]:
        """The prediction in the form that `exajax simulate --json` promises."""
        return self.report.to_json()


def predict(recipe: Recipe, cluster: Cluster) -> Prediction:
    """Returns what the analytic engine says of training a recipe whose `zero` is a level.

    Raises:
        InputError: it has an option that the engine does not know.
    """
    _check_known(recipe)
    cluster = ours(cluster)
    layouts = Layouts.of_recipes([recipe], flash=recipe.flash(cluster.chip.platform))
    how: dict[str, Any] = {
        "global_batch": recipe.global_batch,
        "seq": recipe.seq,
        "precision": recipe.precision,
    }
    times = engine.times(recipe.model, cluster, layouts, **how)
    return Prediction(
        recipe,
        cluster,
        times,
        footprint(recipe.model, cluster.software, layouts, cluster.chip, **how),
    )


def _check_known(recipe: Recipe) -> None:
    for flag, given, known in (
        ("optimizer", recipe.optimizer, "adamw"),
        ("packed", recipe.packed, False),
        ("moe", recipe.moe if recipe.model.experts else "capacity", "capacity"),
        ("capacity_factor", recipe.capacity_factor, CAPACITY),
    ):
        if given != known:
            raise InputError(
                flag,
                f"the analytic engine knows {known} alone, and it is {given}",
                "give `engine` compiled",
            )
    if recipe.model.family == "vit" and recipe.mesh.context > 1:
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
