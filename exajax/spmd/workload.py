"""What one training step computes, said without a mesh."""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from exajax.spmd.weighted import Loss, plus

Batch = Mapping[str, Any]
Tree = Any


@dataclass(frozen=True)
class Stages:
    """A loss in three parts, so that a pipeline can deal the middle one out.

    Attributes:
        enter: `enter(module, batch)` returns the stream that the layers work on.
        body: `body(module, stream, batch)` returns the stream behind the layers that the module
            holds, and what they add to the loss (a scalar, 0 where nothing).
        exit: `exit(module, stream, batch)` returns the loss of the batch: a scalar, a mean in which
            every sample counts the same, or `Weighted`.
        stack: attribute of the module that holds the layers: all its parameters have a first axis
            named `layers`.
        parts: parts of the layers that a pipeline stage interleaves; where more than 1, the
            parameters have an axis of that size before `layers`.
    """

    enter: Callable[[Any, Batch], jax.Array]
    body: Callable[[Any, jax.Array, Batch], tuple[jax.Array, jax.Array]]
    exit: Callable[[Any, jax.Array, Batch], Loss]
    stack: str = "stack"
    parts: int = 1

    def __call__(self, module: Any, batch: Batch) -> Loss:
        """Returns the loss of a batch, all parts on every device."""
        stream, extra = self.body(module, self.enter(module, batch), batch)
        return plus(self.exit(module, stream, batch), extra)

    @property
    def alone(self) -> "Stages":
        """The loss without what the layers add to it."""

        def body(module: Any, stream: jax.Array, batch: Batch) -> tuple[jax.Array, jax.Array]:
            stream, extra = self.body(module, stream, batch)
            return stream, jnp.zeros_like(extra)

        return dataclasses.replace(self, body=body)


@dataclass(frozen=True)
class Workload:
    """What one step computes, said without a mesh.

    Attributes:
        build: makes the module from random streams; or any pytree of arrays, for a loss that is a
            plain function of it. An `nnx.Param` as a leaf names the axes of its array.
        loss: `loss(module, batch)` returns the loss of a batch: a scalar, taken as the mean of
            samples that all count the same, so that a batch may be divided anyhow; or where some
            are masked or count more than others `Weighted`, their sum and its weight. As
            `Stages` where a pipeline is to divide the layers.
        batch: global shape and type of every array of a batch; the first axis counts samples.
        optimizer: any optax transformation.
        learning_rate: the optimizer's schedule, so that `update` can return the rate; None where it
            is in the optimizer's state (`optax.inject_hyperparams`) or nobody can know it.
        tokens_per_sample: tokens in a sample, patches in an image; None where nobody counts.
        model_flops: FLOPs of one step by the model's mathematics, None where nobody counted.
    """

    build: Callable[[nnx.Rngs], Any]
    loss: Callable[[Any, Batch], Loss] | Stages
    batch: Mapping[str, jax.ShapeDtypeStruct]
    optimizer: optax.GradientTransformation
    learning_rate: optax.Schedule | None = None
    tokens_per_sample: int | None = None
    model_flops: float | None = None

    @property
    def samples(self) -> int:
        """Samples in a global batch."""
        return next(iter(self.batch.values())).shape[0]
