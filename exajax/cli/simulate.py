"""Compiles a training step for a described machine and predicts its time and memory."""

import argparse
import os
from typing import Any

from exajax import units
from exajax.cli import flag_types, flags
from exajax.errors import InputError
from exajax.job import runtime
from exajax.job.provenance import provenance
from exajax.machine.cluster import Cluster, cluster_names, load_cluster
from exajax.recipe.recipe import Recipe
from exajax.report import plan_table, step_folder, step_table
from exajax.simulate import advice, roofs, timeline
from exajax.simulate.formulas import prediction as closed
from exajax.simulate.prediction import Prediction, predict_recipe

ENGINES = ("compiled", "analytic")
"""What prices a step: its compiled program, operation by operation, or closed formulas."""

PARTS = ("parameters", "gradients", "optimizer", "activations", "batch", "temporaries")
"""What shares a device's memory at the peak."""


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
    cluster.check(recipe.mesh.devices, recipe.precision)
    if args.out:
        step_folder.check(args.out)
    os.environ["JAX_PLATFORMS"] = "cpu"  # whatever is attached, it is compiled for a described one
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"  # that a step does not fit is a result, not an error
    out = runtime.claim_stdout(with_jax=False)  # a step that is kept is read without
    recipe, prediction = predict(recipe, cluster)
    program = prediction.compiled.program
    events = timeline.events(program, cluster)
    rows = roofs.operations(events, cluster)
    result = in_json(recipe, cluster, prediction, rows)
    if args.out:
        step_folder.write(args.out, result, program, events, rows, cluster)
    print(runtime.json_text(result) if args.json else describe(result, cluster), file=out)
    if args.out and not args.json:
        print(f"  written     {', '.join(step_folder.FILES)} in {args.out}", file=out)
        print("              the trace opens in ui.perfetto.dev", file=out)
    return 0


def _run_analytic(args: argparse.Namespace, recipe: Recipe, cluster: Cluster) -> int:
    """Prints what the analytic engine predicts of the lowest ZeRO level that fits."""
    if args.out:
        raise InputError("out", "the analytic engine has no program", "leave it out")
    cluster.check_mesh(recipe.mesh.devices, recipe.precision)
    predictions = (closed.predict(level, cluster) for level in recipe.levels)
    prediction = next((one for one in predictions if one.fits), None)
    prediction = prediction or closed.predict(recipe.levels[-1], cluster)
    found = provenance(prediction.recipe, cluster) | {"engine": "analytic", "kind": "simulated"}
    result = prediction.to_json() | {"advice": [], "provenance": found}
    if not prediction.fits:
        batch, devices = recipe.global_batch, recipe.mesh.devices
        near = prediction.total_bytes <= closed.capacity_bytes(cluster)
        result["advice"] = ["--engine compiled says for sure whether it fits"] * near + [
            f"exajax plan --model={args.model} --cluster={args.cluster} --devices={devices} "
            f"--global-batch={batch} --seq={recipe.seq} finds layouts that fit"
        ]
    print(runtime.json_text(result) if args.json else plan_table.step(result, cluster))
    return 0


def predict(recipe: Recipe, cluster: Cluster) -> tuple[Recipe, Prediction]:
    """Returns what is predicted, and for which ZeRO level: the lowest of the recipe's that fits."""
    for level in recipe.levels:
        recipe, prediction = level, predict_recipe(level, cluster)
        if prediction.fits:
            break
    return recipe, prediction


def in_json(
    recipe: Recipe,
    cluster: Cluster,
    prediction: Prediction,
    rows: list[roofs.Row],
) -> dict[str, Any]:
    """Returns a prediction in the form that `--json` promises."""
    result = prediction.to_json()
    if not prediction.fits:
        ways_out = advice.ways_out(
            recipe,
            cluster,
            prediction.compiled.memory,
            prediction.capacity_bytes,
            lambda changed: predict_recipe(changed, cluster),
        )
        result["advice"] += [flags.as_flags(way, flags.RECIPE_FLAGS) for way in ways_out]
    return result | {
        "roofline": [row.to_json() for row in roofs.grouped(rows)],
        "mesh": str(recipe.mesh),
        "model": recipe.model.name,
        "zero": recipe.zero,
        "provenance": provenance(recipe, cluster, prediction.compiled.left_out)
        | {"engine": "compiled", "kind": "simulated", "idle_axes": list(prediction.idle_axes)},
    }


def describe(result: dict[str, Any], cluster: Cluster) -> str:
    """Returns a prediction in words."""
    memory, spent = result["memory_bytes"], result["breakdown_s"]
    parts = {key: value for key, value in spent.items() if key != "exposed_communication"}
    exposed = spent["exposed_communication"]
    parts |= {f"exposed {axes} communication": seconds for axes, seconds in exposed.items()}
    spread = result["variability"]
    lines = [
        f"simulated: {result['model']} on {result['mesh']} of {cluster.title}, "
        f"{result['devices']:,} x {cluster.chip.title}",
        f"  step time   {units.show(result['step_time_s'], 's')}   "
        f"{result['tokens_per_s']:,.0f} tokens/s   MFU {result['mfu']:.1%}   "
        f"HFU {result['hfu']:.1%}",
        f"  varies      p95 {units.show(spread['p95_s'], 's')}, "
        f"p99 {units.show(spread['p99_s'], 's')}; {units.show(spread['nominal_s'], 's')} if all "
        f"{result['devices']:,} devices were alike",
        f"  memory      {units.show(memory['total'], 'B')} of "
        f"{units.show(memory['capacity'], 'B')} a device: "
        + ("fits" if result["fits"] else "DOES NOT FIT"),
        "              "
        + ", ".join(
            f"{key} {units.show(memory[key], 'B')}"
            for key in sorted(PARTS, key=lambda key: -memory[key])
            if memory[key] >= 0.005 * memory["total"]
        ),
        f"  largest     {result['largest_buffers'][0]['name']}, "
        f"{units.show(result['largest_buffers'][0]['bytes'], 'B')}",
        "  time        "
        + ", ".join(
            f"{name.replace('_', ' ')} {seconds / result['step_time_s']:.0%}"
            for name, seconds in sorted(parts.items(), key=lambda part: -part[1])
            if seconds >= 0.005 * result["step_time_s"]
        ),
        *step_table.lines(result["roofline"]),
    ]
    if result["proxy"]:
        lines.append(
            f"  note        the program is that of {result['compiled_for']} in its place, priced "
            f"by the peaks, memory and links of {cluster.chip.title}: XLA compiles for no such "
            "chip without one. Never held against a measured step"
        )
    lines += [f"  note        {note}" for note in result["notes"]]
    lines += [f"  advice      {advice}" for advice in result["advice"]]
    program = result["program"]
    for what, names in (
        ("priced by bytes alone", program["unpriced"]),
        ("counted once, their length unknown", program["loops_of_unknown_length"]),
    ):
        if names:
            lines.append(f"  note        {len(names)} {what}: {', '.join(names[:5])}")
    return "\n".join(lines)
