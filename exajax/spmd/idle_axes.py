"""Detection of idle mesh axes: axes that divide nothing, so that their devices repeat work."""

import warnings
from collections.abc import Iterator
from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec

from exajax.spmd import jaxprs
from exajax.spmd.mesh import idle_note
from exajax.spmd.step import TrainStep


def idle_axes(step: TrainStep) -> tuple[str, ...]:
    """Axes larger than 1 that divide neither the batch, nor the state, nor any activation.

    Activations are examined, by tracing the loss, only where batch and state leave an axis.
    """
    idle = {axis: size for axis, size in step.mesh.shape.items() if size > 1}
    arrays = jax.tree.leaves((step.state, step.batch))
    for axis in _axes_in([array.sharding for array in arrays]):
        idle.pop(axis, None)
    if idle:
        traced = jax.make_jaxpr(step.evaluate)(step.state.params, step.batch)
        for operation in jaxprs.operations(traced.jaxpr):
            for axis in _axes_in(list(operation.params.values())):
                idle.pop(axis, None)
    return tuple(str(axis) for axis in idle)


def _axes_in(value: Any) -> Iterator[str]:
    """Mesh axes that occur in shardings."""
    if isinstance(value, NamedSharding):
        value = value.spec
    if isinstance(value, PartitionSpec):
        for entry in value:
            yield from (entry,) if isinstance(entry, str) else entry or ()
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _axes_in(item)


def warn_of_idle_axes(step: TrainStep) -> None:
    """Warns, on the first process, about idle axes of a step's mesh."""
    axes = idle_axes(step)
    if axes and jax.process_index() == 0:
        warnings.warn(idle_note(axes, step.mesh.shape), stacklevel=1)
