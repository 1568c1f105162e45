"""Gradients over micro-batches, reduced between replicas once."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from exajax.spmd import weighted
from exajax.spmd.mesh import BATCH_AXES
from exajax.spmd.sharding import axis_size, constrain, free_axes, manual
from exajax.spmd.weighted import Loss, Weighted

Tree = Any
Weigh = Callable[[Tree], jax.Array]
"""Returns the weight of a batch, which does not depend on the parameters."""


def split(batch: Tree, parts: int) -> Tree:
    """Returns micro-batches, [parts, B / parts, ...], each with samples of every device.

    What a device holds stays there.
    """
    ways = 1
    for axis in free_axes(BATCH_AXES):
        ways *= axis_size(axis)

    def one(x: jax.Array) -> jax.Array:
        # Samples lie by device; a micro-batch takes the same places of each.
        by_device = x.reshape(ways, parts, -1, *x.shape[1:]).swapaxes(0, 1)
        names = (None, "batch", *[None] * (x.ndim - 1))
        return constrain(by_device.reshape(parts, -1, *x.shape[1:]), names)

    return jax.tree.map(one, batch)


def value_and_grad(
    loss: Callable[[Tree, Tree], Loss],
    weigh: Weigh | None,
    parts: int,
    replicas: Sequence[str],
    place: Callable[[Tree], Tree],
) -> Callable[[Tree, Tree], tuple[jax.Array, Tree]]:
    """Returns a function of (params, batch) to the loss and its gradients, in fp32.

    The sums over micro-batches are as large as the parameters that a device computes with, 4 bytes
    each, at ZeRO 2 too: replicas reduce once a step, where sums that are sharded over `data` would
    take a reduce-scatter with every micro-batch. ZeRO 3 and `fsdp` make that trade.

    Args:
        loss: of a micro-batch.
        weigh: of a weighted loss; the weight of the whole batch is summed first, so that every
            micro-batch adds its share of the gradients. None where all count the same.
        parts: micro-batches of a batch, worked on one after the other.
        replicas: mesh axes whose devices hold equal parameters. Each adds up its own gradients;
            they are reduced in one go after the last micro-batch.
        place: constrains a tree of gradients to their shardings.
    """

    def accumulated(params: Tree, batch: Tree) -> tuple[jax.Array, Tree]:
        batches = split(batch, parts)
        portion = shared(loss, weigh, batches, parts, replicas)

        def add(total: Tree, part: Tree) -> tuple[Tree, None]:
            # A micro-batch begins when the one before is added up. Without this, XLA's pipelined
            # all-gathers gather, for example, the logits' input one micro-batch early: the whole
            # forward pass runs for that, and runs again for what the backward pass needs.
            total, part = jax.lax.optimization_barrier((total, part))
            got = jax.value_and_grad(portion)(params, part)
            value, gradients = jax.tree.map(lambda t, g: t + g.astype(t.dtype), total, got)
            return (value, place(gradients)), None

        zeros = place(jax.tree.map(lambda p: jnp.zeros(p.shape, jnp.float32), params))
        totals, _ = jax.lax.scan(add, (jnp.zeros(()), zeros), batches)
        return mean(totals, parts, replicas)

    return _over(accumulated, replicas)


def value(
    loss: Callable[[Tree, Tree], Loss], weigh: Weigh | None, parts: int, replicas: Sequence[str]
) -> Callable[[Tree, Tree], Loss]:
    """Returns a function of (params, batch) to the loss; arguments as `value_and_grad`'s."""

    def accumulated(params: Tree, batch: Tree) -> Loss:
        def add(total: Loss, part: Tree) -> tuple[Loss, None]:
            return jax.tree.map(jnp.add, total, loss(params, part)), None

        total, _ = jax.lax.scan(add, nothing(weigh), split(batch, parts))
        return mean(total, parts, replicas)

    return _over(accumulated, replicas)


def shared(
    loss: Callable[..., Loss],
    weigh: Weigh | None,
    batches: Tree,
    parts: int,
    replicas: Sequence[str],
) -> Callable[..., jax.Array]:
    """Returns a loss of micro-batches whose `mean` is the loss of the batch.

    Args:
        loss: of a micro-batch.
        weigh: of a weighted loss.
        batches: the micro-batches of this replica, [parts, B / parts, ...].
        parts: how many there are.
        replicas: mesh axes that the rest of the batch lies on.
    """
    if weigh is None:
        return lambda *arguments: weighted.mean(loss(*arguments))
    weigh_one = weigh

    def add(total: jax.Array, part: Tree) -> tuple[jax.Array, None]:
        return total + weigh_one(part), None

    weight, _ = jax.lax.scan(add, jnp.zeros(()), batches)
    if replicas:
        weight = jax.lax.psum(weight, tuple(replicas))
    count = parts * math.prod(axis_size(axis) for axis in replicas)
    return lambda *arguments: weighted.share(loss(*arguments), weight, count)


def nothing(weigh: Weigh | None) -> Loss:
    """Returns the loss that sums of losses begin with."""
    zero = jnp.zeros(())
    return zero if weigh is None else Weighted(zero, zero, zero)


def _over(function: Callable[..., Any], replicas: Sequence[str]) -> Callable[..., Any]:
    """Returns a function of (params, batch) that every replica computes for its own samples."""
    if not replicas:
        return function
    whole, divided = PartitionSpec(), PartitionSpec(tuple(replicas))
    # Looked up when it is called: only then is it known on which mesh.
    return lambda *arguments: manual(function, replicas, (whole, divided), whole)(*arguments)


def mean(totals: Tree, parts: int, replicas: Sequence[str]) -> Tree:
    """Returns sums over micro-batches and replicas as means: of `Weighted` only the extra."""
    count = parts * math.prod(axis_size(axis) for axis in replicas)
    if isinstance(totals, Weighted):
        totals = replace(totals, extra=totals.extra / count)
    else:
        totals = jax.tree.map(lambda x: x / count, totals)
    return jax.lax.psum(totals, tuple(replicas)) if replicas else totals
