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

from exajax.spmd.workload import Tree
from exajax.train.checkpoint.manifest import name_of

Digests = Mapping[str, str]
"""16 hexadecimal digits for every array, by its path."""


def digester(described: Tree, mesh: Mesh) -> Callable[[Tree], jax.Array]:
    """Returns a compiled function from a state to its digests, for `named`.

    Args:
        described: shapes and shardings of the state.
        mesh: that it lies on.
    """

    def digests(state: Tree) -> jax.Array:
        return jnp.stack([digest_of(leaf) for leaf in jax.tree.leaves(state)])

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


@jax.jit  # traced once for all arrays of a shape: parameters and their moments
def digest_of(array: jax.Array) -> jax.Array:
    """Returns two sums over hashes of the elements of an array, each hashed with its place.

    The hash is one to one, so that no change of one element is lost, whichever bits of it. Of
    changes in several elements one in 2^64 is.
    """
    bits = _bits(array)
    place = jnp.zeros(bits.shape, jnp.uint32)
    stride = 1
    for axis in reversed(range(bits.ndim)):
        count = jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis)
        place += count * np.uint32(stride % 2**32)
        stride *= bits.shape[axis]
    first = _mixed(bits ^ _mixed(place + np.uint32(0x9E3779B9)))
    second = _mixed(first + np.uint32(0x7F4A7C15))
    # Both sums in one pass: else the hashes would be written to memory, as large as the array.
    both = jax.lax.reduce(
        (first, second),
        (np.uint32(0), np.uint32(0)),
        lambda one, other: (one[0] + other[0], one[1] + other[1]),
        tuple(range(bits.ndim)),
    )
    return jnp.stack(both)


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
