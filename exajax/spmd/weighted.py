"""A loss whose samples do not all count the same: a sum and the weight that divides it.

The mean of the means of two micro-batches is the mean of both only where they weigh the same. A
masked loss, or one that weighs classes, therefore hands over its sum and its weight; whoever
divides the batch (micro-batches, replicas, pipeline, evaluation) adds both up and divides once.
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
    """A weighted mean that is not divided yet: total / weight + extra.

    The loss of a batch that is worked on in parts is (sum of totals) / (sum of weights) + (mean of
    extras), whatever the parts are. So `total` and `weight` must be sums over samples, or means
    over them both: a weight that is clipped (`maximum(weights.sum(), 1)`) does not add up.

    Where all samples together weigh 0, the mean is 0 and so are its gradients.

    Attributes:
        total: sum of value x weight, a scalar.
        weight: sum of the weights, a scalar from 0 on. It follows from the batch alone: it is
            summed before any gradient is computed, and is a constant to them.
        extra: a plain mean over the samples that is added, such as the balance of a mixture.
    """

    total: jax.Array
    weight: jax.Array
    extra: jax.Array | float = 0.0

    @property
    def mean(self) -> jax.Array:
        """The loss, a scalar."""
        return _divided(self.total, self.weight) + self.extra

    def __float__(self) -> float:
        return float(self.mean)


Loss = jax.Array | Weighted
"""What a loss returns: a scalar, in which every sample counts the same, or a weighted mean."""


def weighted_mean(values: jax.Array, weights: jax.Array) -> Weighted:
    """Returns the mean of values by their weights, summed in fp32.

    A value of weight 0 may be anything, NaN too. Gradients must be numbers all the same.

    Args:
        values: one loss for each sample or token, of any shape.
        weights: of each, in the same shape: numbers from 0 on, or booleans.

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


def checked(loss: Any) -> Loss:
    """Returns what a loss function returned, in fp32.

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


def plus(loss: Loss, extra: jax.Array) -> Loss:
    """Returns a loss and a plain mean that is added to it."""
    return replace(loss, extra=loss.extra + extra) if isinstance(loss, Weighted) else loss + extra


def times(loss: Loss, factor: jax.Array) -> Loss:
    """Returns a loss, without what is added to it, multiplied by a factor."""
    if isinstance(loss, Weighted):
        return replace(loss, total=loss.total * factor)
    return loss * factor


def mean(loss: Loss) -> jax.Array:
    """Returns a loss as one number."""
    return loss.mean if isinstance(loss, Weighted) else loss


def share(loss: Loss, weight: jax.Array, parts: int) -> jax.Array:
    """Returns what a part adds to the loss of all parts, times their number.

    Args:
        loss: of one part.
        weight: of all parts together; a plain loss has none.
        parts: how many there are, all of equally many samples.
    """
    if not isinstance(loss, Weighted):
        return loss
    return _divided(parts * loss.total, weight) + loss.extra


def mean_of_batches(losses: Sequence[Any]) -> float:
    """Returns the mean over whole batches of what was measured of each, in fp64 on the host.

    Raises:
        InputError: all of them together weigh 0.
    """
    if not any(isinstance(loss, Weighted) for loss in losses):
        return float(np.mean(losses))
    total, weight, extra = (
        [float(getattr(loss, name)) for loss in losses] for name in ("total", "weight", "extra")
    )
    if not sum(weight):
        raise InputError("held_out", "its samples weigh 0 in total", "give some that count")
    return sum(total) / sum(weight) + float(np.mean(extra))


def weight_alone(loss: Callable[..., Any], others: Tree, batch: Tree) -> jax.Array | None:
    """Computes the weight of a batch without its loss; None where the loss is a plain mean.

    The loss is traced and all that its weight does not need is left out.

    Args:
        loss: `loss(*others, batch)`.
        others: what else it takes, as shapes: parameters, or the stream of a pipeline.
        batch: arrays.

    Raises:
        InputError: the loss is none, or its weight depends on something else than the batch.
    """

    def weight(others: Tree, batch: Tree) -> jax.Array | None:
        value = checked(loss(*others, batch))
        return value.weight if isinstance(value, Weighted) else None

    closed, described = jax.make_jaxpr(weight, return_shape=True)(others, batch)
    if described is None:
        return None
    used, run = jaxprs.needed_inputs(closed)
    flat = jax.tree.leaves(batch)
    count = len(used) - len(flat)
    if any(used[:count]):
        raise InputError(
            "loss",
            "its weight depends on the parameters",
            "make it of the batch alone, and put what depends on them in the total",
        )
    return run([x for x, is_used in zip(flat, used[count:], strict=True) if is_used])


def _divided(total: jax.Array, weight: jax.Array) -> jax.Array:
    """Returns total / weight with a constant weight; 0 where it is 0."""
    weight = jax.lax.stop_gradient(weight)
    return total / jnp.where(weight == 0, jnp.inf, weight)
