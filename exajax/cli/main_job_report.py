"""The report of the main job: scaling plots, a page, a trace."""

from typing import Any

from exajax.cli.main_job_stages import MainJob
from exajax.roofline import Comparison
from exajax.simulate import weak_scaling
from exajax.simulate.step_report import CompiledReport


def write_report(
    job: MainJob,
    measured: dict[str, Any],
    points: list[CompiledReport],
    simulated: CompiledReport,
    comparison: Comparison | None,
) -> None:
    """Writes the scaling plots for TensorBoard, the page and the trace; prints where they are.

    Args:
        job: the main job.
        measured: the result of training the small model.
        points: the simulated steps of the full model, by devices.
        simulated: the simulated step of the small model.
        comparison: measured and simulated step time of the small model, if steps were timed.
    """
    from exajax.report import page, perfetto, plots
    from exajax.train.sinks import tensorboard

    path = job.folder.path
    curves = weak_scaling.curve(points)
    name, small = job.recipe.model.name, job.small_recipe.model.name
    figure = plots.scaling(name, small, curves, measured, simulated)
    runs = {
        f"simulated-{name}": {f"scaling/{tag}": values for tag, values in curves.items()},
        f"simulated-{small}": {
            "scaling/tokens_per_s": {simulated.devices: simulated.tokens_per_s or 0.0}
        },
    }
    if measured["tokens_per_s"]:
        runs[f"measured-{small}"] = {
            "scaling/tokens_per_s": {measured["devices"]["count"]: measured["tokens_per_s"]}
        }
    tensorboard.write_scaling(path / "tensorboard" / "scaling", runs, figure)
    figure.savefig(path / "scaling.png", dpi=150)
    _write_trace(job)
    small_model = page.SmallModel(job.small_recipe, simulated, measured, comparison)
    page.write(path, job.recipe, job.cluster, points, small_model)
    print(f"\nreport       {path / 'report.html'}")
    print(f"trace        {path / perfetto.NAME}, opens in ui.perfetto.dev")
    print(f"TensorBoard  tensorboard --logdir {path / 'tensorboard'}")
    print(f"numbers      {path / 'run.json'}, {path / 'metrics.jsonl'}", flush=True)


def _write_trace(job: MainJob) -> None:
    """Writes one trace of both simulated steps, and of the small model's profiled step if any."""
    from exajax.report import perfetto, profile

    full, small = (
        perfetto.read(job.step_folder(recipe) / perfetto.NAME)
        for recipe in (job.recipe, job.small_recipe)
    )
    traces = [full, small]
    profiled = profile.newest(job.folder.path / "profile")
    if profiled:
        title = f"{job.small_recipe.model.name} on {job.small_recipe.mesh} of this machine"
        traces.append(profile.trace(title, profiled, perfetto.names_of(small)))
    perfetto.write(job.folder.path / perfetto.NAME, perfetto.merged(traces))
