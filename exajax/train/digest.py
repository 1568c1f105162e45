"""Digests of the arrays of a state: the same on any mesh, and in any layout of the same layers.

They are sums of integers, so that every device adds up what it holds and only the sums travel. A
sum does not ask in which order it is made, and the place of an element is its place in the whole
array, so that neither the mesh nor the axes that count layers change it.
"""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from exajax.train.manifest import name_of
from exajax.workload import Tree

Digests = Mapping[str, str]
"""16 hexadecimal digits for every array, by its path."""


def digester(described: Tree, mesh: Mesh) -> Callable[[Tree], jax.Array]:
    """Returns a compiled function from a state to its digests, for `named`.

    Args:
        described: shapes and shardings of the state.
        mesh: that it lies on.
    """

    def digests(state: Tree) -> jax.Array:
        return jnp.stack([_digest(leaf) for leaf in jax.tree.leaves(state)])

    everywhere = NamedSharding(mesh, PartitionSpec())
    lowered = jax.jit(digests, out_shardings=everywhere).lower(described)
    return lowered.compile()


def named(digests: jax.Array, described: Tree) -> Digests:
    """Returns what a function of `digester` made, by the paths of the arrays. Waits for it."""
    leaves = jax.tree_util.tree_leaves_with_path(described)
    sums = np.asarray(digests.addressable_data(0))
    return {
        name_of(path): f"{first:08x}{second:08x}"
        for (path, _), (first, second) in zip(leaves, sums, strict=True)
    }


def _digest(array: jax.Array) -> jax.Array:
    """Returns two sums over the bits of an array, each element times a number that its place has.

    The numbers are odd: 2^b times an odd number is no multiple of 2^32 for any bit b of 32, so that
    no single flipped bit is lost. They are hashed, so that flips do not make up for each other as
    they would with numbers in a row.
    """
    bits = _bits(array)
    place = jnp.zeros(bits.shape, jnp.uint32)
    stride = 1
    for axis in reversed(range(bits.ndim)):
        count = jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis)
        place += count * np.uint32(stride % 2**32)
        stride *= bits.shape[axis]
    first = _mixed(place)
    second = first * np.uint32(0x9E3779B1) ^ (first >> 15)
    factors = (first | 1, second | 1)
    return jnp.stack([jnp.sum(bits * factor, dtype=jnp.uint32) for factor in factors])


def _bits(array: jax.Array) -> jax.Array:
    """Returns the bits of every element as uint32; an element of 64 bits becomes two."""
    if array.dtype == jnp.bool_:
        return array.astype(jnp.uint32)
    unsigned = jnp.dtype(f"uint{8 * min(array.dtype.itemsize, 4)}")
    return jax.lax.bitcast_convert_type(array, unsigned).astype(jnp.uint32)


def _mixed(number: jax.Array) -> jax.Array:
    """Returns a hash: the finalizer of MurmurHash3, by Austin Appleby, in the public domain."""
    number = (number ^ (number >> 16)) * np.uint32(0x85EBCA6B)
    number = (number ^ (number >> 13)) * np.uint32(0xC2B2AE35)
    return number ^ (number >> 16)
