"""Memory that a compiled step needs on a device, and the first ZeRO level at which it fits."""

from collections.abc import Callable, Sequence
from typing import Any

import jax

from exajax import units
from exajax.errors import InputError
from exajax.job.provenance import memory_bytes
from exajax.recipe.recipe import Recipe
from exajax.spmd import compiler_options
from exajax.spmd.step import TrainStep, local_bytes


def needed_bytes(update: jax.stages.Compiled) -> int:
    """Returns the bytes of a compiled step on one device, at their peak."""
    statistics: Any = update.memory_analysis()
    return statistics.argument_size_in_bytes + statistics.temp_size_in_bytes


def capacity_bytes(device: jax.Device) -> int:
    """Returns the bytes that a device has for a step; a CPU device has its part of the host's."""
    limits = device.memory_stats() or {}
    return limits.get("bytes_limit", memory_bytes() // jax.local_device_count())


def check_fits(update: jax.stages.Compiled, device: jax.Device) -> None:
    """Raises an `InputError` if a compiled step needs more memory than a device has."""
    needed, capacity = needed_bytes(update), capacity_bytes(device)
    if needed > capacity:
        raise InputError(
            "mesh",
            f"a device needs {units.show(needed, 'B')} for a step and has "
            f"{units.show(capacity, 'B')}",
            "give a larger mesh, a smaller `global_batch`, `remat` full or a smaller `model`",
        )


def first_that_fits(
    recipes: Sequence[Recipe], build: Callable[[Recipe], TrainStep], capacity: int
) -> tuple[Recipe, TrainStep]:
    """Returns the first recipe whose step fits, or the last; with its step.

    Args:
        recipes: in order of preference.
        build: makes the step of a recipe.
        capacity: bytes of a device.
    """
    for recipe in recipes[:-1]:
        step = build(recipe)
        if local_bytes(step.state) > capacity:
            continue  # no need to compile that
        lowered = step.update.lower(step.state, step.batch)
        update = compiler_options.compile(lowered, step.mesh.devices.flat[0].platform)
        if needed_bytes(update) <= capacity:
            return recipe, step
    return recipes[-1], build(recipes[-1])
