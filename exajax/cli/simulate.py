"""Compiles a training step for a described machine and predicts its time and memory."""

import argparse
import dataclasses
import os
from pathlib import Path

from exajax import units
from exajax.cli import flag_types, flags
from exajax.errors import InputError
from exajax.job import runtime
from exajax.job.provenance import provenance
from exajax.machine.cluster import Cluster, cluster_names, load_cluster
from exajax.recipe.recipe import Recipe
from exajax.report import plan_table, step_folder, step_table
from exajax.simulate import advice, roofs, timeline
from exajax.simulate.formulas.prediction import capacity_bytes, predict, provenance_of_engine
from exajax.simulate.prediction import Prediction, predict_recipe
from exajax.simulate.step_report import LEAST_SHARE, CompiledReport

ENGINES = ("compiled", "analytic")
"""Engines that price a step: by the operations of its compiled program, or by closed formulas."""


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the command's flags."""
    flags.add_recipe_flags(parser)
    machines = ", ".join([*cluster_names(), "local"])
    parser.add_argument(
        "--cluster",
        type=flag_types.name,
        default="dgx-h100",
        help=f"a TOML of one's own, or one of {machines}",
    )
    parser.add_argument("--engine", choices=ENGINES, default="compiled", help="what prices")
    parser.add_argument(
        "--out",
        type=flag_types.path,
        metavar="DIR",
        help=f"write {', '.join(step_folder.FILES)} there",
    )


def run(args: argparse.Namespace) -> int:
    """Prints the prediction."""
    recipe = flags.recipe_of(args)
    cluster = load_cluster(args.cluster)
    if args.engine == "analytic":
        return _run_analytic(args, recipe, cluster)
    return run_compiled(recipe, cluster, args.out, as_json=args.json)


def run_compiled(recipe: Recipe, cluster: Cluster, folder: Path | None, *, as_json: bool) -> int:
    """Compiles and prices a step, and prints the prediction.

    Args:
        recipe: what to simulate.
        cluster: the described machine.
        folder: takes the files of the step, None for none.
        as_json: whether to print JSON.
    """
    cluster.check(recipe.mesh.devices, recipe.precision)
    if folder:
        step_folder.check(folder)
    os.environ["JAX_PLATFORMS"] = "cpu"  # attached devices are not used
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"  # a step that does not fit is a result, not an error
    out = runtime.claim_stdout(with_jax=False)  # not needed where the compiled step is stored
    recipe, prediction = predict_lowest_level(recipe, cluster)
    program = prediction.compiled.program
    events = timeline.events(program, cluster)
    rows = roofs.operations(events, cluster)
    report = full_report(recipe, cluster, prediction, rows)
    if folder:
        step_folder.write(folder, report, program, events, rows, cluster)
    text = runtime.json_text(report.to_json()) if as_json else describe(report, cluster)
    print(text, file=out)
    if folder and not as_json:
        print(f"  written     {', '.join(step_folder.FILES)} in {folder}", file=out)
        print("              the trace opens in ui.perfetto.dev", file=out)
    return 0


def _run_analytic(args: argparse.Namespace, recipe: Recipe, cluster: Cluster) -> int:
    """Prints what the analytic engine predicts of the lowest ZeRO level that fits."""
    if args.out:
        raise InputError("out", "the analytic engine has no program", "leave it out")
    cluster.check_mesh(recipe.mesh.devices, recipe.precision)
    predictions = (predict(level, cluster) for level in recipe.levels)
    prediction = next((level for level in predictions if level.fits), None)
    prediction = prediction or predict(recipe.levels[-1], cluster)
    source = provenance(prediction.recipe, cluster) | provenance_of_engine()
    advice_lines: list[str] = []
    if not prediction.fits:
        batch, devices = recipe.global_batch, recipe.mesh.devices
        near = prediction.total_bytes <= capacity_bytes(cluster)
        advice_lines = ["--engine compiled says for sure whether it fits"] * near + [
            f"exajax plan --model={args.model} --cluster={args.cluster} --devices={devices} "
            f"--global-batch={batch} --seq={recipe.seq} finds layouts that fit"
        ]
    report = dataclasses.replace(prediction.report, advice=tuple(advice_lines), provenance=source)
    print(runtime.json_text(report.to_json()) if args.json else plan_table.step(report, cluster))
    return 0


def predict_lowest_level(recipe: Recipe, cluster: Cluster) -> tuple[Recipe, Prediction]:
    """The recipe at the lowest of its ZeRO levels that fits, else the last, and its prediction."""
    for level in recipe.levels:
        recipe, prediction = level, predict_recipe(level, cluster)
        if prediction.fits:
            break
    return recipe, prediction


def full_report(
    recipe: Recipe,
    cluster: Cluster,
    prediction: Prediction,
    rows: list[roofs.Row],
) -> CompiledReport:
    """The report of a prediction, with its recipe, advice, roofline and provenance."""
    report = prediction.report
    advice_lines = report.advice or ()
    if not prediction.fits:
        ways_out = advice.ways_out(
            recipe,
            cluster,
            prediction.compiled.memory,
            prediction.capacity_bytes,
            lambda changed: predict_recipe(changed, cluster),
        )
        advice_lines = (
            *advice_lines,
            *(flags.as_flags(way, flags.RECIPE_FLAGS) for way in ways_out),
        )
    return dataclasses.replace(
        report,
        advice=advice_lines,
        roofline=tuple(roofs.grouped(rows)),
        mesh=str(recipe.mesh),
        model=recipe.model.name,
        zero=recipe.zero,
        provenance=provenance(recipe, cluster, prediction.compiled.left_out)
        | {"engine": "compiled", "kind": "simulated", "idle_axes": list(prediction.idle_axes)},
    )


def describe(report: CompiledReport, cluster: Cluster) -> str:
    """A report in words, about twenty lines."""
    memory, varies = report.memory_bytes, report.variability
    parts = memory.parts().items()
    least = LEAST_SHARE * memory.total
    largest = report.largest_buffers[0]
    lines = [
        f"simulated: {report.model} on {report.mesh} of {cluster.title}, "
        f"{report.devices:,} x {cluster.chip.title}",
        f"  step time   {units.show(report.step_time_s, 's')}   "
        f"{report.tokens_per_s:,.0f} tokens/s   MFU {report.mfu:.1%}   HFU {report.hfu:.1%}",
        f"  varies      p95 {units.show(varies.p95_s, 's')}, "
        f"p99 {units.show(varies.p99_s, 's')}; {units.show(varies.nominal_s, 's')} if all "
        f"{report.devices:,} devices were alike",
        f"  memory      {units.show(memory.total, 'B')} of "
        f"{units.show(memory.capacity, 'B')} a device: "
        + ("fits" if report.fits else "DOES NOT FIT"),
        "              "
        + ", ".join(f"{name} {units.show(size, 'B')}" for name, size in parts if size >= least),
        f"  largest     {largest.name}, {units.show(largest.bytes, 'B')}",
        f"  time        {report.breakdown_s.shares()}",
        *step_table.lines(report.roofline or ()),
    ]
    return "\n".join([*lines, *_remarks(report, cluster)])


def _remarks(report: CompiledReport, cluster: Cluster) -> list[str]:
    """Lines of notes and advice under a report in words."""
    lines = []
    if report.proxy:
        lines.append(
            f"  note        the program is that of {report.compiled_for} in its place, priced "
            f"by the peaks, memory and links of {cluster.chip.title}: XLA compiles for no such "
            "chip without one. Never held against a measured step"
        )
    lines += [f"  note        {note}" for note in report.notes]
    lines += [f"  advice      {advice}" for advice in report.advice or ()]
    for what, names in (
        ("priced by bytes alone", report.program.unpriced),
        ("counted once, their length unknown", report.program.loops_of_unknown_length),
    ):
        if names:
            lines.append(f"  note        {len(names)} {what}: {', '.join(names[:5])}")
    return lines
