"""Layers between pipelines: from the parts that one stage interleaves into those of another.

[L, ...] and [V, L / V, ...] hold the same layers in the same order (`Stages.parts`), so
that one is the other reshaped. What is not obvious is that no device ever holds it whole.
"""

import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from exajax.spmd.step import TrainState
from exajax.train.checkpoint.manifest import Array, name_of


def as_saved(described: TrainState, arrays: Mapping[str, Array]) -> TrainState:
    """Returns a described state in the shapes of saved arrays, sharded as near to it as they go.

    Args:
        described: shapes and shardings.
        arrays: what was saved: the same but for the axes that count layers.
    """

    def one(path: tuple[object, ...], leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        shape = arrays[name_of(path)].shape
        if shape == leaf.shape:
            return leaf
        return jax.ShapeDtypeStruct(shape, leaf.dtype, sharding=_sharding(shape, leaf))

    return jax.tree_util.tree_map_with_path(one, described)


def regrouped(state: TrainState, described: TrainState) -> TrainState:
    """Returns a state in the shapes and shardings of `described`; what had others is freed."""

    def one(x: jax.Array, leaf: jax.ShapeDtypeStruct) -> jax.Array:
        if x.shape == leaf.shape:
            return x
        reshape = jax.jit(jnp.reshape, static_argnums=1, out_shardings=leaf.sharding)
        moved = reshape(x, leaf.shape)
        x.delete()  # one by one: a device may not have room for two states
        return moved

    return jax.tree.map(one, state, described)


def _sharding(shape: tuple[int, ...], leaf: jax.ShapeDtypeStruct) -> NamedSharding:
    """Returns how layers on other axes than `leaf` has them lie on its mesh.

    What divides its layers divides these where it can, the innermost axis first, and another axis
    that is still whole otherwise.
    """
    mesh = leaf.sharding.mesh
    spec = (*leaf.sharding.spec, *[None] * (len(leaf.shape) - len(leaf.sharding.spec)))
    theirs = 2 if len(shape) >= len(leaf.shape) else 1
    ours = theirs + len(leaf.shape) - len(shape)
    entries = [*[None] * theirs, *spec[ours:]]
    axes = next((entry for entry in spec[:ours] if entry), ())
    names = (axes,) if isinstance(axes, str) else axes
    ways = math.prod(mesh.shape[name] for name in names)
    for axis in [*reversed(range(theirs)), *range(theirs, len(shape))]:
        if names and entries[axis] is None and shape[axis] % ways == 0:
            entries[axis] = names
            break
    return NamedSharding(mesh, PartitionSpec(*entries))
