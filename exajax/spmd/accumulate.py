"""Gradient accumulation over micro-batches, with one reduction over replicas at the end."""

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
"""Function of a batch that returns its weight, which does not depend on the parameters."""


def split_micro_batches(batch: Tree, parts: int) -> Tree:
    """A batch [B, ...] as micro-batches [parts, B / parts, ...], without moving samples.

    Every micro-batch has an equal share of the samples of each device.
    """
    ways = 1
    for axis in free_axes(BATCH_AXES):
        ways *= axis_size(axis)

    def split_array(x: jax.Array) -> jax.Array:
        by_device = x.reshape(ways, parts, -1, *x.shape[1:]).swapaxes(0, 1)
        names = (None, "batch", *[None] * (x.ndim - 1))
        return constrain(by_device.reshape(parts, -1, *x.shape[1:]), names)

    return jax.tree.map(split_array, batch)


def value_and_grad(
    loss: Callable[[Tree, Tree], Loss],
    weigh: Weigh | None,
    parts: int,
    replicas: Sequence[str],
    place: Callable[[Tree], Tree],
) -> Callable[[Tree, Tree], tuple[jax.Array, Tree]]:
    """A function of (params, batch) that returns the loss and its gradients, in fp32.

    A device's sum of gradients takes 4 bytes for each parameter that it computes with, also at
    ZeRO 2: replicas reduce once a step, whereas sums sharded over `data` would need a
    reduce-scatter for every micro-batch. ZeRO 3 and `fsdp` make that trade.

    Args:
        loss: loss of a micro-batch.
        weigh: weight of a micro-batch, for a weighted loss: the weight of the whole batch is summed
            first, so that every micro-batch adds its share of the gradients. None for a plain mean.
        parts: number of micro-batches, which are processed one after the other.
        replicas: mesh axes whose devices have equal parameters. Each device sums its own gradients;
            they are reduced over these axes once, after the last micro-batch.
        place: constrains a tree of gradients to their shardings.
    """

    def accumulated(params: Tree, batch: Tree) -> tuple[jax.Array, Tree]:
        batches = split_micro_batches(batch, parts)
        share = share_of_loss(loss, weigh, batches, parts, replicas)

        def add(total: Tree, micro_batch: Tree) -> tuple[Tree, None]:
            # The barrier makes a micro-batch start after the one before has been added. Without it,
            # XLA's pipelined all-gathers would, for example, gather the input of the logits one
            # micro-batch early: that runs the forward pass once for the gather, and once more for
            # the backward pass.
            total, micro_batch = jax.lax.optimization_barrier((total, micro_batch))
            addend = jax.value_and_grad(share)(params, micro_batch)
            value, gradients = jax.tree.map(lambda t, x: t + x.astype(t.dtype), total, addend)
            return (value, place(gradients)), None

        zeros = place(jax.tree.map(lambda p: jnp.zeros(p.shape, jnp.float32), params))
        totals, _ = jax.lax.scan(add, (jnp.zeros(()), zeros), batches)
        return mean_over_parts(totals, parts, replicas)

    return _on_every_replica(accumulated, replicas)


def value(
    loss: Callable[[Tree, Tree], Loss], weigh: Weigh | None, parts: int, replicas: Sequence[str]
) -> Callable[[Tree, Tree], Loss]:
    """A function of (params, batch) that returns the loss; arguments as for `value_and_grad`."""

    def accumulated(params: Tree, batch: Tree) -> Loss:
        def add(total: Loss, micro_batch: Tree) -> tuple[Loss, None]:
            return jax.tree.map(jnp.add, total, loss(params, micro_batch)), None

        total, _ = jax.lax.scan(add, zero_loss(weigh), split_micro_batches(batch, parts))
        return mean_over_parts(total, parts, replicas)

    return _on_every_replica(accumulated, replicas)


def share_of_loss(
    loss: Callable[..., Loss],
    weigh: Weigh | None,
    batches: Tree,
    parts: int,
    replicas: Sequence[str],
) -> Callable[..., jax.Array]:
    """A scalar loss of a micro-batch, whose mean over all micro-batches is the loss of the batch.

    Args:
        loss: loss of a micro-batch.
        weigh: weight of a micro-batch, for a weighted loss; None for a plain mean.
        batches: the micro-batches of this replica, [parts, B / parts, ...].
        parts: number of micro-batches.
        replicas: mesh axes over which the other replicas have the rest of the batch.
    """
    if weigh is None:
        return lambda *arguments: weighted.mean_loss(loss(*arguments))
    weigh_micro_batch = weigh

    def add(total: jax.Array, micro_batch: Tree) -> tuple[jax.Array, None]:
        return total + weigh_micro_batch(micro_batch), None

    weight, _ = jax.lax.scan(add, jnp.zeros(()), batches)
    if replicas:
        weight = jax.lax.psum(weight, tuple(replicas))
    count = parts * math.prod(axis_size(axis) for axis in replicas)
    return lambda *arguments: weighted.share_of_mean(loss(*arguments), weight, count)


def zero_loss(weigh: Weigh | None) -> Loss:
    """The zero to which losses are added: `Weighted` if there is a weight, else a scalar."""
    zero = jnp.zeros(())
    return zero if weigh is None else Weighted(zero, zero, zero)


def _on_every_replica(function: Callable[..., Any], replicas: Sequence[str]) -> Callable[..., Any]:
    """A function of (params, batch), mapped so that every replica computes its own samples."""
    if not replicas:
        return function
    replicated, divided = PartitionSpec(), PartitionSpec(tuple(replicas))
    specs = (replicated, divided), replicated
    # `manual` reads the mesh in use, which is known only when this is called.
    return lambda *arguments: manual(function, replicas, *specs)(*arguments)


def mean_over_parts(totals: Tree, parts: int, replicas: Sequence[str]) -> Tree:
    """Means over micro-batches and replicas, of sums over micro-batches.

    Of a `Weighted`, total and weight stay sums, and only the extra becomes a mean.
    """
    count = parts * math.prod(axis_size(axis) for axis in replicas)
    if isinstance(totals, Weighted):
        totals = replace(totals, extra=totals.extra / count)
    else:
        totals = jax.tree.map(lambda x: x / count, totals)
    return jax.lax.psum(totals, tuple(replicas)) if replicas else totals
