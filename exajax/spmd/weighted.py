"""Weighted losses: a sum and the weight to divide it by, for samples that do not count equally.

The mean over a batch is the mean of its micro-batches' means only if they have equal weights. A
masked or class-weighted loss therefore returns its sum and its weight; the code that divides a
batch (micro-batches, replicas, pipeline, evaluation) sums both and divides once.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from exajax.errors import InputError
from exajax.spmd import jaxprs

Tree = Any

_FIX = "return a scalar, or exajax.Weighted(total, weight)"


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=("total", "weight", "extra"), meta_fields=()
)
@dataclass(frozen=True)
class Weighted:
    """A weighted mean before its division: total / weight + extra.

    The loss of a batch in parts is (sum of totals) / (sum of weights) + (mean of extras), for any
    parts. So `total` and `weight` must both be sums over samples, or both means: a clipped weight
    (`maximum(weights.sum(), 1)`) does not add up.

    If the total weight is 0, the mean is 0 and so are its gradients.

    Attributes:
        total: sum of value x weight, a scalar.
        weight: sum of the weights, a non-negative scalar. It depends only on the batch: it is
            summed before any gradient is computed, and is constant for gradients.
        extra: a plain mean over samples to be added, such as the load-balancing loss of experts.
    """

    total: jax.Array
    weight: jax.Array
    extra: jax.Array | float = 0.0

    @property
    def mean(self) -> jax.Array:
        """The loss, a scalar."""
        return _divide(self.total, self.weight) + self.extra

    def __float__(self) -> float:
        return float(self.mean)


Loss = jax.Array | Weighted
"""Result of a loss function: a scalar, the mean of equally weighted samples, or `Weighted`."""


def weighted_mean(values: jax.Array, weights: jax.Array) -> Weighted:
    """The mean of losses by their weights, summed in fp32.

    A value of weight 0 is ignored even if it is NaN; its gradient must still be finite.

    Args:
        values: a loss for each sample or token, of any shape.
        weights: their weights, of the same shape: non-negative numbers, or booleans.

    Raises:
        InputError: the shapes differ.
    """
    if jnp.shape(values) != jnp.shape(weights):
        raise InputError(
            "weights",
            f"their shape is {jnp.shape(weights)} and that of the values {jnp.shape(values)}",
            "give one weight for each value (jnp.broadcast_to)",
        )
    weights = jnp.asarray(weights, jnp.float32)
    products = jnp.where(weights == 0, 0, jnp.asarray(values, jnp.float32) * weights)
    return Weighted(jnp.sum(products), jnp.sum(weights))


def as_loss(loss: Any) -> Loss:
    """The result of a loss function, checked, in fp32.

    Raises:
        InputError: it is neither a scalar nor `Weighted`.
    """
    if isinstance(loss, Weighted):
        parts = {name: jnp.asarray(getattr(loss, name)) for name in ("total", "weight", "extra")}
        for name, part in parts.items():
            if part.shape:
                raise InputError("loss", f"its {name} has shape {part.shape}", "sum it to a scalar")
        if not jnp.issubdtype(parts["total"].dtype, jnp.floating):
            kind = parts["total"].dtype
            raise InputError("loss", f"its total is {kind} and has no gradient", "compute in float")
        return Weighted(**{name: part.astype(jnp.float32) for name, part in parts.items()})
    if not isinstance(loss, jax.Array | np.ndarray | np.generic | float | int):
        raise InputError("loss", f"it returned a {type(loss).__name__}", _FIX)
    if jnp.shape(loss):
        raise InputError("loss", f"it returned an array of shape {jnp.shape(loss)}", _FIX)
    loss = jnp.asarray(loss)
    return loss.astype(jnp.float32) if jnp.issubdtype(loss.dtype, jnp.floating) else loss


def add_extra(loss: Loss, extra: jax.Array) -> Loss:
    """A loss plus an extra loss that is a plain mean over samples."""
    return replace(loss, extra=loss.extra + extra) if isinstance(loss, Weighted) else loss + extra


def scale(loss: Loss, factor: jax.Array) -> Loss:
    """A loss multiplied by a factor, without its extra."""
    if isinstance(loss, Weighted):
        return replace(loss, total=loss.total * factor)
    return loss * factor


def mean_loss(loss: Loss) -> jax.Array:
    """A loss as a scalar."""
    return loss.mean if isinstance(loss, Weighted) else loss


def share_of_mean(loss: Loss, weight: jax.Array, parts: int) -> jax.Array:
    """A scalar loss of one part of a batch, whose mean over the parts is the batch's loss.

    Args:
        loss: loss of the part.
        weight: weight of all parts together; unused for a plain mean.
        parts: number of parts, all with equally many samples.
    """
    if not isinstance(loss, Weighted):
        return loss
    return _divide(parts * loss.total, weight) + loss.extra


def mean_of_batches(losses: Sequence[Any]) -> float:
    """The mean loss over several batches of equal size, computed in fp64 on the host.

    Args:
        losses: a loss, or a plain metric, of each batch.

    Raises:
        InputError: their total weight is 0.
    """
    if not any(isinstance(loss, Weighted) for loss in losses):
        return float(np.mean(losses))
    total, weight, extra = (
        [float(getattr(loss, name)) for loss in losses] for name in ("total", "weight", "extra")
    )
    if not sum(weight):
        raise InputError("held_out", "its samples weigh 0 in total", "give some that count")
    return sum(total) / sum(weight) + float(np.mean(extra))


def weight_without_loss(loss: Callable[..., Any], others: Tree, batch: Tree) -> jax.Array | None:
    """The weight of a batch, computed without its loss; None if the loss is a plain mean.

    Traces the loss, and evaluates only what its weight depends on.

    Args:
        loss: `loss(*others, batch)`.
        others: shapes of its other arguments: parameters, or the stream of a pipeline.
        batch: arrays of the batch.

    Raises:
        InputError: the loss is malformed, or its weight does not depend on the batch alone.
    """

    def weight(others: Tree, batch: Tree) -> jax.Array | None:
        value = as_loss(loss(*others, batch))
        return value.weight if isinstance(value, Weighted) else None

    closed, shape = jax.make_jaxpr(weight, return_shape=True)(others, batch)
    if shape is None:
        return None
    used, run = jaxprs.needed_inputs(closed)
    arrays = jax.tree.leaves(batch)
    first = len(used) - len(arrays)  # inputs before it are `others`
    if any(used[:first]):
        raise InputError(
            "loss",
            "its weight depends on the parameters",
            "make it of the batch alone, and put what depends on them in the total",
        )
    return run([x for x, is_used in zip(arrays, used[first:], strict=True) if is_used])


def _divide(total: jax.Array, weight: jax.Array) -> jax.Array:
    """The quotient total / weight, with the weight constant for gradients; 0 if the weight is 0."""
    weight = jax.lax.stop_gradient(weight)
    return total / jnp.where(weight == 0, jnp.inf, weight)
