"""Prices every layout of a model over so many devices, and ranks those that fit."""

import argparse
import dataclasses
import math
import os
import shlex
import sys
import time

import numpy as np

from exajax import units
from exajax.cli import flag_types, flags
from exajax.errors import InputError
from exajax.job import runtime
from exajax.job.provenance import provenance
from exajax.machine.cluster import Cluster, cluster_names, load_cluster
from exajax.models.dimensions import FLOPS_CONVENTION
from exajax.models.presets import PRESETS, lookup
from exajax.recipe.recipe import PRECISIONS, Recipe
from exajax.report import plan_table
from exajax.simulate import plan
from exajax.simulate.formulas.prediction import capacity_bytes, predict, provenance_of_engine
from exajax.simulate.plans import Cost, Faster, Plan, Plans, Verified
from exajax.simulate.step_report import StepReport

SHOWN = 3
"""Most layouts that are listed as faster with more memory."""

LEAST_GAIN = 0.01
"""How much faster they have to be."""

MANY_LAYOUTS = 500_000
"""Layouts from which on pricing takes seconds, and progress is printed every `SAY_EVERY_S`."""

SAY_EVERY_S = 5.0

MOST_SEQUENCES = 1 << 20
"""Of a step: far more than anybody trains with, and few enough for their divisors to be counted."""


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the command's flags."""
    add = parser.add_argument
    parser.epilog = FLOPS_CONVENTION
    machines = ", ".join([*cluster_names(), "local"])
    add(
        "--model",
        type=flag_types.name,
        default=flags.MODEL,
        help="a preset or a TOML of dimensions: " + ", ".join(PRESETS),
    )
    add(
        "--cluster",
        type=flag_types.name,
        default="dgx-h100",
        help=f"a TOML of one's own, or one of {machines}",
    )
    add(
        "--devices",
        type=flag_types.whole(1, flag_types.MOST_DEVICES),
        required=True,
        metavar="N",
        help="devices to lay it over",
    )
    add(
        "--global-batch",
        type=flag_types.whole(1, MOST_SEQUENCES),
        required=True,
        metavar="N",
        help="sequences of one step",
    )
    add(
        "--seq",
        type=flag_types.whole(1, flag_types.MOST_SEQ),
        metavar="N",
        help="tokens of a sequence (default: the model's)",
    )
    add("--precision", choices=PRECISIONS, default="bf16", help="what the passes compute in")
    add(
        "--top",
        type=flag_types.whole(1, flag_types.MOST_TIMES),
        default=5,
        metavar="K",
        help="meshes to show, the best layout of each",
    )
    add(
        "--verify",
        type=flag_types.whole(0, flag_types.MOST_TIMES),
        default=0,
        metavar="K",
        help="compile the best K ahead of time too",
    )
    add(
        "--tokens",
        type=flag_types.number(0, 1e30, above=True),
        metavar="N",
        help="tell node-hours and energy of so many tokens",
    )
    add(
        "--plot",
        type=flag_types.path,
        metavar="FILE",
        help="draw time against memory, a .png or .svg",
    )
    add("--json", action="store_true", help="one JSON object on standard output")


def run(args: argparse.Namespace) -> int:
    """Prints the plans."""
    work, cluster = _checked(args)
    out = sys.stdout
    if args.verify:
        cluster.check(args.devices, args.precision)
        os.environ["JAX_PLATFORMS"] = "cpu"  # it is compiled for a described machine
        os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
        out = runtime.claim_stdout(with_jax=False)
    begun = time.perf_counter()
    found = plan.search(work, cluster, args.devices, Progress())
    seconds = time.perf_counter() - begun
    fitting = found.fits.nonzero()[0]
    best = found.ranked(fitting)[: max(args.top, args.verify)]
    recipes = [found.recipe(int(row)) for row in best]
    plans = [_plan(recipe, found.cluster, args) for recipe in recipes]
    for number, recipe in enumerate(recipes[: args.verify]):
        progress = f"compiling {number + 1} of {min(args.verify, len(recipes))}: {recipe.mesh}"
        print(progress, file=sys.stderr, flush=True)
        verified = _verified(recipe, plans[number].report, cluster)
        plans[number] = dataclasses.replace(plans[number], verified=verified)
    result = Plans(
        cluster=cluster.name,
        devices=args.devices,
        evaluated=len(found.layouts),
        fitting=len(fitting),
        seconds=seconds,
        plans=tuple(plans),
        faster_with_more_memory=tuple(_with_more_memory(found, args)),
        advice=() if len(fitting) else tuple(_advice(found, args)),
    )
    table = flags.as_flags(plan_table.described(result, cluster), vars(args))
    text = runtime.json_text(result.to_json()) if args.json else table
    print(text, file=out, flush=True)
    if args.plot:
        from exajax.report import plan_plot, plots

        plots.write(args.plot, plan_plot.draw(found))
    return 0


class Progress:
    """Says every few seconds how far the pricing of many layouts is."""

    def __init__(self) -> None:
        self._said_s = -SAY_EVERY_S

    def __call__(self, priced: int, layouts: int) -> None:
        """Prints a line on standard error if it is time for one."""
        now_s = time.monotonic()
        if layouts >= MANY_LAYOUTS and now_s - self._said_s >= SAY_EVERY_S:
            self._said_s = now_s
            print(f"priced {priced:,} of {layouts:,} layouts", file=sys.stderr, flush=True)


def _checked(args: argparse.Namespace) -> tuple[plan.Workload, Cluster]:
    """The workload to plan and the machine; raises an `InputError` that names a flag."""
    model, cluster = lookup(args.model), load_cluster(args.cluster)
    cluster.chip.peak(args.precision)
    if args.devices > cluster.devices:
        raise InputError(
            "devices",
            f"{args.devices} are more than the {cluster.devices} of {cluster.name}",
            f"give at most {cluster.devices}, or another --cluster",
        )
    if not cluster.in_whole_nodes(args.devices):
        raise InputError(
            "devices",
            f"{args.devices} are not whole nodes of {cluster.devices_per_node}",
            f"give a multiple of {cluster.devices_per_node}",
        )
    if args.plot:
        from exajax.report import plots  # matplotlib, for this alone

        plots.check_file(args.plot)
    seq = model.seq if args.seq is None else args.seq
    return plan.Workload(model, args.global_batch, seq, args.precision), cluster


def _plan(recipe: Recipe, cluster: Cluster, args: argparse.Namespace) -> Plan:
    """A plan: what is predicted of it, its options, and the command that trains it."""
    found = provenance(recipe, cluster) | provenance_of_engine()
    report = dataclasses.replace(predict(recipe, cluster).report, provenance=found)
    options = ("micro_batch", "zero", "remat", "schedule", "interleave", "sequence_parallel")
    return Plan(
        report,
        options={name: getattr(recipe, name) for name in options},
        command=command(recipe, args.model),
        cost=_cost(report.step_time_s, recipe, cluster, args.tokens),
    )


def command(recipe: Recipe, model: str) -> str:
    """Returns the command that trains a recipe, less the flags that say what holds anyway."""
    usual = {field.name: field.default for field in dataclasses.fields(Recipe)}
    usual |= {"seq": recipe.model.seq}
    given = [name for name in flags.RECIPE_FLAGS if getattr(recipe, name) is not None]
    argv = zip(given, flags.recipe_argv(recipe, model), strict=True)
    kept = [flag for name, flag in argv if getattr(recipe, name) != usual[name]]
    return shlex.join(["exajax", "train", *kept])


def _cost(
    step_time_s: float, recipe: Recipe, cluster: Cluster, tokens: float | None
) -> Cost | None:
    """Time, node-hours and energy of a number of tokens; None where none was given."""
    if tokens is None:
        return None
    steps = math.ceil(tokens / recipe.tokens)
    hours = steps * step_time_s / 3600
    nodes = math.ceil(recipe.mesh.devices / cluster.devices_per_node)
    power_w = cluster.chip.power_w
    return Cost(
        tokens=tokens,
        steps=steps,
        days=hours / 24,
        node_hours=hours * nodes,
        device_energy_kwh=power_w and hours * recipe.mesh.devices * power_w / 1e3,
    )


def _verified(recipe: Recipe, planned: StepReport, cluster: Cluster) -> Verified:
    """What the compiled engine predicts for a plan, and how far the plan is from it."""
    from exajax.cli import simulate

    try:
        prediction = simulate.predict(recipe, cluster)[1]
    except (NotImplementedError, RuntimeError) as error:  # XLA's errors are RuntimeErrors
        first = (str(error).splitlines() or [type(error).__name__])[0]
        return Verified(fits=False, reason=f"XLA refuses it: {first}")
    step_s, total = prediction.step_time_s, prediction.compiled.memory.total
    return Verified(
        fits=prediction.fits,
        reason="",
        step_time_s=step_s,
        memory_bytes=total,
        step_time_gap=planned.step_time_s / step_s - 1,
        memory_gap=planned.memory_bytes.total / total - 1,
    )


def _with_more_memory(found: plan.Found, args: argparse.Namespace) -> list[Faster]:
    """Layouts that would be faster if they fitted, the least memory first."""
    limit = capacity_bytes(found.cluster)
    fastest = found.step_s[found.fits].min(initial=math.inf)
    front = [
        int(row)
        for row in found.front()
        if found.bytes[row] > limit and found.step_s[row] < fastest / (1 + LEAST_GAIN)
    ]
    if math.isinf(fastest):
        return []
    chosen = front if len(front) <= SHOWN else [front[0], front[len(front) // 2], front[-1]]
    return [
        Faster(
            step_time_s=float(found.step_s[row]),
            memory_bytes=float(found.bytes[row]),
            capacity=limit,
            faster_by=float(fastest / found.step_s[row] - 1),
            command=command(found.recipe(row), args.model),
        )
        for row in chosen
    ]


def _advice(found: plan.Found, args: argparse.Namespace) -> list[str]:
    """Where nothing fits: the layout that comes closest, and what would help, a line each."""
    work, cluster = found.work, found.cluster
    closest = int(np.lexsort((found.step_s, found.bytes))[0])
    limit, recipe = capacity_bytes(cluster), found.recipe(closest)
    needed = f"{units.show(float(found.bytes[closest]), 'B')} of {units.show(limit, 'B')} a device"
    lines = [f"nothing fits; closest is {needed}: {command(recipe, args.model)}"]
    if found.bytes[closest] <= limit:
        lines.append("that may do: formulas want a margin, and --engine compiled says for sure")
    if work.global_batch < args.devices:
        larger = dataclasses.replace(work, global_batch=args.devices)
        if plan.smallest_that_fits(larger, cluster, [args.devices], Progress()):
            lines.append(
                f"--global-batch {args.devices} makes it fit: parameters are divided over no more "
                "devices than the batch has sequences"
            )
    counts = [args.devices * ways for ways in (2, 4, 8, 16, 32, 64)]
    counts = [n for n in counts if n <= cluster.devices]
    more = plan.smallest_that_fits(work, cluster, counts, Progress())
    if more:
        best = int(more.ranked(more.fits.nonzero()[0])[0])
        step, devices = units.show(float(more.step_s[best]), "s"), more.layouts.devices[best]
        lines.append(f"--devices {devices} makes it fit: {step} a step (analytic engine)")
    memory = predict(recipe, cluster).memory
    if found.bytes[closest] - memory.activations[0] - memory.temporaries[0] < limit:
        lines.append("a shorter --seq needs less")
    return lines
