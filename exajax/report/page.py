"""The page of a run: one HTML file that opens without a network."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2

from exajax import units
from exajax.job import provenance
from exajax.machine.cluster import Cluster
from exajax.models.dimensions import FLOPS_CONVENTION
from exajax.recipe.recipe import Recipe
from exajax.report import perfetto, plots, roofline_plot, step_table
from exajax.roofline import Comparison
from exajax.simulate.step_report import CompiledReport
from exajax.simulate.weak_scaling import curve
from exajax.train.sinks import history


@dataclass(frozen=True)
class SmallModel:
    """The small model of a main job, which is trained here and simulated on this machine.

    Attributes:
        recipe: what was trained.
        simulated: its simulated step.
        measured: what was measured of it.
        comparison: its measured and simulated step time, if steps were timed.
    """

    recipe: Recipe
    simulated: CompiledReport
    measured: Mapping[str, Any]
    comparison: Comparison | None


def write(
    path: Path,
    recipe: Recipe,
    cluster: Cluster,
    points: Sequence[CompiledReport],
    small: SmallModel,
) -> None:
    """Writes `report.html` of a main job.

    Args:
        path: the run folder, with its `metrics.jsonl` and its trace.
        recipe: the full model on the full mesh.
        cluster: where the full model would run.
        points: what was simulated for it, by devices.
        small: the small model.
    """
    records = history.read(path / "metrics.jsonl")
    curves = curve(points)
    full = next(p for p in points if p.devices == recipe.mesh.devices)
    figures = {
        "scaling": plots.scaling(
            recipe.model.name, small.recipe.model.name, curves, small.measured, small.simulated
        ),
        "anatomy": plots.anatomy(points),
        "roofline": roofline_plot.roofline(
            f"{recipe.model.name} on {recipe.mesh}", full.roofline or (), cluster.chip
        ),
        "training": plots.training(
            records, small.measured["unigram_entropy"], small.simulated.step_time_s
        ),
    }
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("exajax.report", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["si"] = lambda value, unit: units.show(value, unit)
    page = environment.get_template("page.html.j2").render(
        recipe=recipe,
        small_recipe=small.recipe,
        cluster=cluster,
        points=points,
        efficiency=curves["efficiency"],
        trace=perfetto.NAME,
        where=step_table.cells(full.roofline or ()),
        full=full,
        small=small.simulated,
        measured=small.measured,
        comparison=small.comparison,
        figures={name: plots.svg(figure) for name, figure in figures.items()},
        versions=provenance.versions(),
        flops_convention=FLOPS_CONVENTION,
        machine=provenance.machine(),
        sources=_sources(cluster),
    )
    (path / "report.html").write_text(page)


def _sources(cluster: Cluster) -> list[tuple[str, str]]:
    chip = [(f"{cluster.chip.name}: {key}", text) for key, text in cluster.chip.sources.items()]
    return sorted(cluster.sources.items()) + sorted(chip)
