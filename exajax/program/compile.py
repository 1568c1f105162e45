"""Compiles a train step for attached or described devices, without running it."""

import re
import tempfile
from pathlib import Path
from typing import Any

import jax

from exajax.job import compilation_cache
from exajax.machine.cluster import Cluster
from exajax.program import cudnn, hlo, memory, schedule, store, target
from exajax.program.compiled import Artifact, Compiled
from exajax.program.dumps import Dumps
from exajax.program.memory import Sizes
from exajax.recipe.recipe import Recipe
from exajax.spmd import compiler_options
from exajax.spmd.idle_axes import idle_axes
from exajax.spmd.step import TrainStep, local_bytes

PLACE = re.compile(r'"[^"\n]*":\d+:\d+(?: to (?:\d*:)?\d+)?')
"""A place in a source file, in the text of a lowered program."""


def compile_recipe(recipe: Recipe, cluster: Cluster) -> Artifact:
    """Compiles the step of a recipe for the devices of a described machine."""
    from exajax.recipe import workloads

    described = recipe.mesh.build(target.devices(cluster, recipe.mesh.devices))
    workload = workloads.workload(recipe, cluster.chip.platform)
    step = TrainStep.of(workload, described, **recipe.step_options)
    return _compile(step, _lower(step))


def compile_step(step: TrainStep, cluster: Cluster | None = None) -> Compiled:
    """Compiles the update of a train step and reads the result.

    Args:
        step: any step.
        cluster: the described machine that its devices are of: the program is then read from the
            store, if it is there.
    """
    lowered = _lower(step)
    if cluster is None or not store.serves(cluster):
        return Compiled.of(_compile(step, lowered))
    # The names of operations and inputs say what an array is for, so they are a part of the
    # program; where in whose files it was written is not.
    text = PLACE.sub("", lowered.as_text(debug_info=True))
    devices = [device.id for device in step.mesh.devices.flat]
    key = store.key("step", text, devices, dict(step.mesh.shape), cluster.digest)
    artifact = store.load(key)
    if artifact is None:
        artifact = _compile(step, lowered)
        store.store(key, artifact)
    return Compiled.of(artifact)


def _lower(step: TrainStep) -> jax.stages.Lowered:
    with cudnn.assumed():
        return step.update.lower(step.state, step.batch)


def _idle_axes(step: TrainStep) -> tuple[str, ...]:
    with cudnn.assumed():
        return idle_axes(step)


def _compile(step: TrainStep, lowered: jax.stages.Lowered) -> Artifact:
    """Compiles, and has XLA write down where it puts what, and how long it thinks that takes."""
    platform = step.mesh.devices.flat[0].platform
    with tempfile.TemporaryDirectory() as folder, compilation_cache.disabled():
        compiled = compiler_options.compile(lowered, platform, Dumps.options(folder))
        text = str(compiled.as_text())
        dumps = Dumps.read(Path(folder), text)
    module = hlo.parse(text)
    return Artifact(
        text,
        {str(axis): size for axis, size in step.mesh.shape.items()},
        memory.measure(_sizes(step, compiled), module, dumps.values()),
        step.schedule.bubble if step.schedule else 0.0,
        schedule.estimate_s(dumps.times_us(), module),
        _idle_axes(step),
        compiler_options.left_out(),
    )


def _sizes(step: TrainStep, compiled: jax.stages.Compiled) -> Sizes:
    statistics: Any = compiled.memory_analysis()
    return Sizes(
        parameters=local_bytes(step.state.params),
        optimizer=local_bytes(step.state.optimizer),
        arguments=statistics.argument_size_in_bytes,
        temporaries=statistics.temp_size_in_bytes,
        # The new state is written over the old one.
        results=max(0, statistics.output_size_in_bytes - statistics.alias_size_in_bytes),
    )
