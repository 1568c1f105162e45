"""The plans of `exajax plan`: predictions, commands, costs, verification and advice."""

import dataclasses
import math
import shlex
from collections.abc import Callable

import numpy as np

from exajax import units
from exajax.cli import flags
from exajax.job.provenance import provenance
from exajax.machine.cluster import Cluster
from exajax.recipe.recipe import Recipe
from exajax.simulate import plan
from exajax.simulate.formulas.prediction import capacity_bytes, predict, provenance_of_engine
from exajax.simulate.plan_report import Cost, Faster, Plan, Verified
from exajax.simulate.step_report import StepReport

SHOWN = 3
"""Layouts to list at most that would be faster with more memory."""

LEAST_GAIN = 0.01
"""Least speed-up of such a layout, as a share."""

Progress = Callable[[int, int], None]
"""`progress(priced, layouts)`, called while layouts are priced."""


def plan_of(recipe: Recipe, cluster: Cluster, model: str, tokens: float | None) -> Plan:
    """A plan: its prediction, its options, the command that trains it, and its cost.

    Args:
        recipe: the layout.
        cluster: the described machine.
        model: the model as it was given: a name, or the path of a file.
        tokens: number of tokens to train on, None without a cost.
    """
    source = provenance(recipe, cluster) | provenance_of_engine()
    report = dataclasses.replace(predict(recipe, cluster).report, provenance=source)
    options = ("micro_batch", "zero", "remat", "schedule", "interleave", "sequence_parallel")
    return Plan(
        report,
        options={name: getattr(recipe, name) for name in options},
        command=train_command(recipe, model),
        cost=_cost(report.step_time_s, recipe, cluster, tokens),
    )


def train_command(recipe: Recipe, model: str) -> str:
    """The command that trains a recipe, without the flags that have their default value."""
    defaults = {field.name: field.default for field in dataclasses.fields(Recipe)}
    defaults |= {"seq": recipe.model.seq}
    names = [name for name in flags.RECIPE_FLAGS if getattr(recipe, name) is not None]
    argv = zip(names, flags.recipe_argv(recipe, model), strict=True)
    needed = [flag for name, flag in argv if getattr(recipe, name) != defaults[name]]
    return shlex.join(["exajax", "train", *needed])


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


def verify(recipe: Recipe, planned: StepReport, cluster: Cluster) -> Verified:
    """The compiled engine's prediction of a plan, and the plan's deviation from it."""
    from exajax.cli import simulate

    try:
        prediction = simulate.predict_lowest_level(recipe, cluster)[1]
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


def with_more_memory(search: plan.PricedLayouts, model: str) -> list[Faster]:
    """Layouts that would be faster if they fitted, the least memory first."""
    limit = capacity_bytes(search.cluster)
    fastest = search.step_s[search.fits].min(initial=math.inf)
    front = [
        int(row)
        for row in search.front()
        if search.bytes[row] > limit and search.step_s[row] < fastest / (1 + LEAST_GAIN)
    ]
    if math.isinf(fastest):
        return []
    chosen = front if len(front) <= SHOWN else [front[0], front[len(front) // 2], front[-1]]
    return [
        Faster(
            step_time_s=float(search.step_s[row]),
            memory_bytes=float(search.bytes[row]),
            capacity=limit,
            faster_by=float(fastest / search.step_s[row] - 1),
            command=train_command(search.recipe(row), model),
        )
        for row in chosen
    ]


def advice(search: plan.PricedLayouts, devices: int, model: str, progress: Progress) -> list[str]:
    """Where nothing fits: the layout that comes closest, and what would help, a line each.

    Args:
        search: the priced layouts.
        devices: number of devices.
        model: the model as it was given.
        progress: called while further layouts are priced.
    """
    work, cluster = search.work, search.cluster
    closest = int(np.lexsort((search.step_s, search.bytes))[0])
    limit, recipe = capacity_bytes(cluster), search.recipe(closest)
    needed = f"{units.show(float(search.bytes[closest]), 'B')} of {units.show(limit, 'B')} a device"
    lines = [f"nothing fits; closest is {needed}: {train_command(recipe, model)}"]
    if search.bytes[closest] <= limit:
        lines.append("that may do: formulas want a margin, and --engine compiled says for sure")
    if work.global_batch < devices:
        larger = dataclasses.replace(work, global_batch=devices)
        if plan.smallest_that_fits(larger, cluster, [devices], progress):
            lines.append(
                f"--global-batch {devices} makes it fit: parameters are divided over no more "
                "devices than the batch has sequences"
            )
    counts = [devices * ways for ways in (2, 4, 8, 16, 32, 64)]
    counts = [n for n in counts if n <= cluster.devices]
    more = plan.smallest_that_fits(work, cluster, counts, progress)
    if more:
        best = int(more.ranked(more.fits.nonzero()[0])[0])
        step, count = units.show(float(more.step_s[best]), "s"), more.layouts.devices[best]
        lines.append(f"--devices {count} makes it fit: {step} a step (analytic engine)")
    memory = predict(recipe, cluster).memory
    if search.bytes[closest] - memory.activations[0] - memory.temporaries[0] < limit:
        lines.append("a shorter --seq needs less")
    return lines
