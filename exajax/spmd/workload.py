"""A workload: everything that one training step computes, independent of a mesh."""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from exajax.spmd.weighted import Loss, add_extra

Batch = Mapping[str, Any]
"""Arrays of a batch by name; the first axis of each counts samples."""

Tree = Any
"""Any pytree of arrays."""


@dataclass(frozen=True)
class Stages:
    """A loss in three functions, of which a pipeline divides the middle one over its stages.

    Attributes:
        enter: `enter(module, batch)` returns the stream that enters the first layer.
        body: `body(module, stream, batch)` returns the stream after those layers that the module
            has, and the layers' extra loss, a scalar (0 if there is none).
        exit: `exit(module, stream, batch)` returns the loss of the batch: a scalar, the mean of
            equally weighted samples, or `Weighted`.
        stack: attribute of the module that contains the layers; all its parameters have a first
            axis named `layers`.
        parts: chunks of layers in a stage, for an interleaved schedule; where more than 1, the
            parameters have an axis of that size before `layers`.
    """

    enter: Callable[[Any, Batch], jax.Array]
    body: Callable[[Any, jax.Array, Batch], tuple[jax.Array, jax.Array]]
    exit: Callable[[Any, jax.Array, Batch], Loss]
    stack: str = "stack"
    parts: int = 1

    def __call__(self, module: Any, batch: Batch) -> Loss:
        """The loss of a batch, without a pipeline."""
        stream, extra = self.body(module, self.enter(module, batch), batch)
        return add_extra(self.exit(module, stream, batch), extra)

    @property
    def without_extra(self) -> "Stages":
        """The same loss without the layers' extra loss, for evaluation."""

        def body(module: Any, stream: jax.Array, batch: Batch) -> tuple[jax.Array, jax.Array]:
            stream, extra = self.body(module, stream, batch)
            return stream, jnp.zeros_like(extra)

        return dataclasses.replace(self, body=body)


@dataclass(frozen=True)
class Workload:
    """Everything that one training step computes, independent of a mesh.

    Attributes:
        build: `build(rngs)` returns the module; or any pytree of arrays, for a loss that is a plain
            function of it. A leaf that is an `nnx.Param` can name the axes of its array.
        loss: `loss(module, batch)` returns the loss of a batch: a scalar, the mean of equally
            weighted samples, so that a batch may be divided in any way; or `Weighted`, if samples
            are masked or weighted. As `Stages` for a pipeline.
        batch: global shape and type of every array of a batch; the first axis counts samples.
        optimizer: any optax transformation.
        learning_rate: the optimizer's schedule, by which `update` reports the rate; None if the
            rate is in the optimizer's state (`optax.inject_hyperparams`), or unknown.
        tokens_per_sample: tokens in a sequence, patches in an image; None if unknown.
        model_flops: FLOPs of one step without recomputation, for MFU; None if unknown.
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
