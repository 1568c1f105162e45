"""What devices hold of arrays that should be equal: digests of every copy, and the odd one out.

A digest is computed by each device from its own memory. Nothing here is a collective, so nothing
can make equal what is not.
"""

import itertools
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from exajax.spmd.mesh import AXES
from exajax.train.health.digest import digest_of

Tree = Any


def digests(tree: Tree) -> jax.Array:
    """Returns the digests of a tree's arrays as one device's part of a table.

    The table is uint32 [axes of the mesh, arrays, 2]; the part of a device has one place of it.
    """
    found = jnp.stack([digest_of(leaf) for leaf in jax.tree.leaves(tree)])
    return found.reshape((1,) * len(AXES) + found.shape)


def local_digests(state: Tree) -> Callable[[Tree], jax.Array]:
    """Returns a program that digests what every device holds of a state.

    Args:
        state: shapes and shardings of its arrays.

    Returns:
        A function of the state to digests, uint32 [axes of the mesh, arrays, 2], each with the
        device that it is of.
    """
    leaves = jax.tree.leaves(state)
    specs = jax.tree.map(lambda leaf: leaf.sharding.spec, state)
    mapped = jax.shard_map(
        digests,
        mesh=leaves[0].sharding.mesh,
        in_specs=(specs,),
        out_specs=PartitionSpec(*AXES),
        check_vma=False,
    )
    return jax.jit(mapped)


def divides(leaf: Any) -> tuple[str, ...]:
    """Returns the mesh axes that divide an array; along the others lie copies of it."""
    entries = ((entry,) if isinstance(entry, str) else entry or () for entry in leaf.sharding.spec)
    return tuple(itertools.chain.from_iterable(entries))


def odd_ones(digests: np.ndarray, divides: Iterable[str]) -> tuple[np.ndarray, np.ndarray]:
    """Returns which devices hold another copy of an array than most.

    Args:
        digests: of an array, by device: [axes of the mesh].
        divides: mesh axes that divide the array; along the others lie its copies.

    Returns:
        Devices that differ from the majority of the copies, and devices whose copies differ with no
        majority among them; both bool [axes of the mesh].
    """
    divided = [AXES.index(axis) for axis in divides]
    copied = [axis for axis in range(len(AXES)) if axis not in divided]
    order = [*divided, *copied]
    shape = [digests.shape[axis] for axis in order]
    count = int(np.prod(shape[len(divided) :], dtype=int))
    odd, doubtful = (np.zeros((digests.size // count, count), bool) for _ in range(2))
    for group, copies in enumerate(digests.transpose(order).reshape(-1, count)):
        values, times = np.unique(copies, return_counts=True)
        if len(values) == 1:
            continue
        if 2 * times.max() > count:
            odd[group] = copies != values[times.argmax()]
        else:
            doubtful[group] = True
    back = np.argsort(order)
    return odd.reshape(shape).transpose(back), doubtful.reshape(shape).transpose(back)
