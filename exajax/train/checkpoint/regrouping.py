"""Reshapes stacked layers between pipelines with other numbers of interleaved parts.

[L, ...] and [V, L / V, ...] hold the same layers in the same order (`Stages.parts`), so that one is
a reshape of the other; it is sharded such that no device ever holds a full array.
"""

import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from exajax.spmd.step import TrainState
from exajax.train.checkpoint.manifest import Array, name_of


def as_saved(described: TrainState, arrays: Mapping[str, Array]) -> TrainState:
    """A described state in the shapes of saved arrays, with shardings as similar as possible.

    Args:
        described: shapes and shardings of the state.
        arrays: the saved arrays, which differ only in the axes that count layers.
    """

    def saved_leaf(path: tuple[object, ...], leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        shape = arrays[name_of(path)].shape
        if shape == leaf.shape:
            return leaf
        return jax.ShapeDtypeStruct(shape, leaf.dtype, sharding=_sharding(shape, leaf))

    return jax.tree_util.tree_map_with_path(saved_leaf, described)


def regrouped(state: TrainState, described: TrainState) -> TrainState:
    """A state in the shapes and shardings of `described`; arrays of other shapes are deleted."""

    def reshaped(x: jax.Array, leaf: jax.ShapeDtypeStruct) -> jax.Array:
        if x.shape == leaf.shape:
            return x
        reshape = jax.jit(jnp.reshape, static_argnums=1, out_shardings=leaf.sharding)
        moved = reshape(x, leaf.shape)
        x.delete()  # at once: a device may not have room for two states
        return moved

    return jax.tree.map(reshaped, state, described)


def _sharding(shape: tuple[int, ...], leaf: jax.ShapeDtypeStruct) -> NamedSharding:
    """The sharding of an array that has other layer axes than `leaf`, on the same mesh.

    The mesh axes of the layers shard a layer axis that they divide, the innermost first, or else
    another axis that is not sharded yet.
    """
    mesh = leaf.sharding.mesh
    spec = (*leaf.sharding.spec, *[None] * (len(leaf.shape) - len(leaf.sharding.spec)))
    saved_axes = 2 if len(shape) >= len(leaf.shape) else 1
    leaf_axes = saved_axes + len(leaf.shape) - len(shape)
    entries = [*[None] * saved_axes, *spec[leaf_axes:]]
    axes = next((entry for entry in spec[:leaf_axes] if entry), ())
    names = (axes,) if isinstance(axes, str) else axes
    ways = math.prod(mesh.shape[name] for name in names)
    for axis in [*reversed(range(saved_axes)), *range(saved_axes, len(shape))]:
        if names and entries[axis] is None and shape[axis] % ways == 0:
            entries[axis] = names
            break
    return NamedSharding(mesh, PartitionSpec(*entries))
