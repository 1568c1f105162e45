"""NaN or outsized gradients, by a factor in the batch that multiplies the loss of a real step."""

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from exajax.spmd.weighted import Loss, scale
from exajax.spmd.workload import Batch, Stages, Workload
from exajax.train.data.batches import Batches, HostBatch

LEAF = "poison"


def poisoned(workload: Workload) -> Workload:
    """A workload whose loss is multiplied by the mean of its batch's `poison`, float32 [B].

    With factors of 1, loss and gradients are the same bit for bit; one NaN makes all of them NaN.
    """
    loss = workload.loss
    batch = {**workload.batch, LEAF: jax.ShapeDtypeStruct((workload.samples,), jnp.float32)}
    if isinstance(loss, Stages):
        last_stage = loss.exit

        def poisoned_stage(module: Any, stream: jax.Array, batch: Batch) -> Loss:
            return scale(last_stage(module, stream, batch), _factor(batch))

        stages = dataclasses.replace(loss, exit=poisoned_stage)
        return dataclasses.replace(workload, loss=stages, batch=batch)

    def poisoned_loss(module: Any, batch: Batch) -> Loss:
        return scale(loss(module, batch), _factor(batch))

    return dataclasses.replace(workload, loss=poisoned_loss, batch=batch)


def _factor(batch: Batch) -> jax.Array:
    # A floating-point mean of ones need not be exactly 1; a mean of zeros is exactly 0.
    return 1 + jnp.mean(batch[LEAF] - 1)


def with_poison(batch: HostBatch, factor: float = 1.0) -> dict[str, np.ndarray]:
    """Rows of a batch, with a factor for the loss."""
    rows = len(next(iter(batch.values())))
    return {**batch, LEAF: np.full(rows, factor, np.float32)}


@dataclass(frozen=True)
class PoisonedBatches:
    """Batches for a poisoned workload.

    Attributes:
        batches: the batches without factors.
        factor: `factor(number)` of a batch, counted from 0; equal on every process.
    """

    batches: Batches
    factor: Callable[[int], float]

    def iterate(self, start: int, rows: np.ndarray) -> Iterator[HostBatch]:
        """Yields some rows of each step's batch."""
        for number, batch in enumerate(self.batches.iterate(start, rows), start):
            yield with_poison(batch, self.factor(number))
