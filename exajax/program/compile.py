"""Compiles a train step for attached or described devices, without running it."""

import re
import tempfile
from pathlib import Path
from typing import Any

import jax

from exajax.job import compilation_cache
from exajax.machine.cluster import Cluster
from exajax.program import cudnn, described_devices, hlo, memory, store, xla_time_estimate
from exajax.program.compiled import Artifact, Compiled
from exajax.program.dumps import Dumps
from exajax.program.memory import Sizes
from exajax.recipe.recipe import Recipe
from exajax.spmd import compiler_options
from exajax.spmd.idle_axes import idle_axes
from exajax.spmd.step import TrainStep, local_bytes

SOURCE_LOCATION = re.compile(r'"[^"\n]*":\d+:\d+(?: to (?:\d*:)?\d+)?')
"""Source location in the text of a lowered program."""


def compile_recipe(recipe: Recipe, cluster: Cluster) -> Artifact:
    """Compiles the step of a recipe for the described devices of a cluster."""
    from exajax.recipe import workloads

    devices = recipe.mesh.build(described_devices.described_devices(cluster, recipe.mesh.devices))
    workload = workloads.workload(recipe, cluster.chip.platform)
    step = TrainStep.of(workload, devices, **recipe.step_options)
    return _compile_artifact(step, _lower(step))


def compile_step(step: TrainStep, cluster: Cluster | None = None) -> Compiled:
    """The compiled update of a train step.

    Args:
        step: a train step, on attached or described devices.
        cluster: the cluster of its described devices, for which compiled programs are stored; None
            to compile without the store.
    """
    lowered = _lower(step)
    if cluster is None or not store.keeps_programs_of(cluster):
        return Compiled.of(_compile_artifact(step, lowered))
    # The names of operations and inputs determine labels and memory roles, so they are part of the
    # key; their locations in source files are not.
    text = SOURCE_LOCATION.sub("", lowered.as_text(debug_info=True))
    devices = [device.id for device in step.mesh.devices.flat]
    key = store.key("step", text, devices, dict(step.mesh.shape), cluster.digest)
    artifact = store.load(key)
    if artifact is None:
        artifact = _compile_artifact(step, lowered)
        store.store(key, artifact)
    return Compiled.of(artifact)


def _lower(step: TrainStep) -> jax.stages.Lowered:
    with cudnn.assumed():
        return step.update.lower(step.state, step.batch)


def _idle_axes(step: TrainStep) -> tuple[str, ...]:
    with cudnn.assumed():
        return idle_axes(step)


def _compile_artifact(step: TrainStep, lowered: jax.stages.Lowered) -> Artifact:
    """Compiles, with XLA's dumps of the buffer assignment, live ranges and schedule."""
    platform = step.mesh.devices.flat[0].platform
    with tempfile.TemporaryDirectory() as folder, compilation_cache.disabled():
        compiled = compiler_options.compile(lowered, platform, Dumps.options(folder))
        text = str(compiled.as_text())
        dumps = Dumps.read(Path(folder), text)
    module = hlo.parse(text)
    return Artifact(
        text,
        {str(axis): size for axis, size in step.mesh.shape.items()},
        memory.peak_memory(_sizes(step, compiled), module, dumps.values()),
        step.schedule.bubble if step.schedule else 0.0,
        xla_time_estimate.estimate_s(dumps.times_us(), module),
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
