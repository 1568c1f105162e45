"""Mesh axes that divide nothing of a step: their devices all repeat the same work."""

import warnings
from collections.abc import Iterator
from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec

from exajax.spmd import jaxprs
from exajax.spmd.mesh import idle_note
from exajax.spmd.step import TrainStep


def idle_axes(step: TrainStep) -> tuple[str, ...]:
    """Returns the axes larger than 1 that neither batch, state nor any activation is divided over.

    Activations are looked at, by tracing the loss once more, only where the others leave an axis.
    """
    left = {axis: size for axis, size in step.mesh.shape.items() if size > 1}
    described = jax.tree.leaves((step.state, step.batch))
    for axis in _axes_in([leaf.sharding for leaf in described]):
        left.pop(axis, None)
    if left:
        traced = jax.make_jaxpr(step.evaluate)(step.state.params, step.batch)
        for operation in jaxprs.operations(traced.jaxpr):
            for axis in _axes_in(list(operation.params.values())):
                left.pop(axis, None)
    return tuple(str(axis) for axis in left)


def _axes_in(value: Any) -> Iterator[str]:
    """Yields the mesh axes that shardings name."""
    if isinstance(value, NamedSharding):
        value = value.spec
    if isinstance(value, PartitionSpec):
        for entry in value:
            yield from (entry,) if isinstance(entry, str) else entry or ()
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _axes_in(one)


def warn_of_idle_axes(step: TrainStep) -> None:
    """Warns once, on the first process, where axes of a step's mesh are idle."""
    axes = idle_axes(step)
    if axes and jax.process_index() == 0:
        warnings.warn(idle_note(axes, step.mesh.shape), stacklevel=1)
