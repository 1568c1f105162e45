"""Trains on the devices that are attached: from a recipe and options to the loop, to a result."""

import dataclasses
import functools
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import jax

from exajax.job import compilation_cache, environment, runtime
from exajax.machine.chip_file import chip_of_device
from exajax.machine.cluster import load_cluster
from exajax.models import fp8
from exajax.recipe import workloads
from exajax.recipe.recipe import Recipe
from exajax.spmd.step import StepOptions, TrainStep
from exajax.train import device_memory, summary
from exajax.train.checkpoint import published_weights
from exajax.train.data.image_batches import ImageBatches
from exajax.train.data.skipping import Skipping
from exajax.train.data.text_batches import TextBatches
from exajax.train.hooks import Evaluation, Hooks
from exajax.train.loop import fit
from exajax.train.process import TrainingProcess
from exajax.train.profiling import Profile
from exajax.train.rates import Mfu
from exajax.train.reporting import Reporting


def train(process: TrainingProcess, data: TextBatches | ImageBatches) -> dict[str, Any]:
    """Trains as one process of a job that has joined; the first one returns the whole result."""
    devices = runtime.job_devices()
    cache = compilation_cache.enable(overwrite=environment.COMPILE_ANEW.get() is not None)
    recipe, step = _build(process, devices)
    options, batches = process.options, Skipping(process.hooks.batches(data))
    reporting = Reporting(process, recipe, data, batches, cache)
    facts = {
        "recipe": recipe.to_json(),
        "data": data.identity,
        "init": options.init and str(options.init),
    }
    fitted = fit(
        step,
        batches,
        steps=recipe.steps,
        seed=recipe.seed,
        checkpoints=options.checkpointing(facts),
        policy=options.policy,
        hooks=[process.hooks, reporting, *_measuring(process, recipe, step, data)],
    )
    if not process.first:
        return {"interrupted": fitted.interrupted}
    result = summary.result(process, recipe, data, fitted)
    when = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    reporting.write(train=result | {"losses": None, "when": when})
    return result


def _build(process: TrainingProcess, devices: Sequence[jax.Device]) -> tuple[Recipe, TrainStep]:
    """Returns the recipe with the first of its ZeRO levels that fits, and its step."""
    options = process.options
    if process.recipe.precision == "fp8":
        fp8.check(devices[0])
    mesh = process.recipe.mesh.build(devices)
    if process.first:  # it may take minutes, to say in the end that it does not fit
        process.say(
            f"compiling the step of {process.recipe.model.summary}, "
            f"{process.recipe.tokens:,} tokens on mesh {process.recipe.mesh}"
        )

    def build(recipe: Recipe) -> TrainStep:
        layout: StepOptions = {**recipe.step_options, "skip_bad": options.on_nan == "skip"}
        workload = process.hooks.workload(workloads.workload(recipe, devices[0].platform))
        return TrainStep.of(workload, mesh, **layout)

    recipe, step = device_memory.first_that_fits(
        process.recipe.levels, build, device_memory.capacity_bytes(jax.local_devices()[0])
    )
    if not options.init:
        return recipe, step
    start = functools.partial(published_weights.start, step, options.init, recipe.model)
    return recipe, dataclasses.replace(step, init=lambda seed: start())


def _measuring(
    process: TrainingProcess, recipe: Recipe, step: TrainStep, data: TextBatches | ImageBatches
) -> list[Hooks]:
    """Returns what is measured: loss on held-out data, MFU where the peak is known, a profile."""
    options, device = process.options, step.mesh.devices.flat[0]

    def held_out() -> Any:
        return process.hooks.held_out(data.held_out(options.evaluation_batches))

    measures = {
        name: TrainStep.of(
            dataclasses.replace(step.workload, loss=measure), step.mesh, **recipe.step_options
        ).evaluate
        for name, measure in workloads.evaluation_metrics(recipe, device.platform).items()
    }
    hooks: list[Hooks] = [Evaluation(held_out, options.evaluate_every, measures)]
    chip = load_cluster(options.cluster).chip if options.cluster else None
    chip = chip or chip_of_device(device.device_kind)
    if chip:
        hooks.append(Mfu(chip.peak(recipe.precision)))
    if options.profile:
        hooks.append(Profile(options.run_dir / "profile" if process.first else None))
    return hooks
