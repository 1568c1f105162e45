"""A gradient that is not a number, or too large: put into the batch, so that the step is real."""

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from exajax.spmd.weighted import Loss, times
from exajax.spmd.workload import Batch, Stages, Workload
from exajax.train.data.batches import Batches, HostBatch

LEAF = "poison"


def poisoned(workload: Workload) -> Workload:
    """Returns a workload whose loss is multiplied by what its batch has under `poison`.

    That is one factor a sample, float32 [B], of which the mean counts. Where all are 1 no bit of
    the loss or of a gradient changes; a NaN makes all of them NaN.
    """
    loss = workload.loss
    batch = {**workload.batch, LEAF: jax.ShapeDtypeStruct((workload.samples,), jnp.float32)}
    if isinstance(loss, Stages):
        end = loss.exit

        def exit_(module: Any, stream: jax.Array, batch: Batch) -> Loss:
            return times(end(module, stream, batch), _factor(batch))

        return dataclasses.replace(
            workload, loss=dataclasses.replace(loss, exit=exit_), batch=batch
        )

    def multiplied(module: Any, batch: Batch) -> Loss:
        return times(loss(module, batch), _factor(batch))

    return dataclasses.replace(workload, loss=multiplied, batch=batch)


def _factor(batch: Batch) -> jax.Array:
    # A mean of ones need not be one; this is.
    return 1 + jnp.mean(batch[LEAF] - 1)


def with_poison(batch: HostBatch, factor: float = 1.0) -> dict[str, np.ndarray]:
    """Returns rows of a batch with a factor for the loss."""
    rows = len(next(iter(batch.values())))
    return {**batch, LEAF: np.full(rows, factor, np.float32)}


@dataclass(frozen=True)
class PoisonedBatches:
    """Batches for a poisoned workload.

    Attributes:
        batches: what to add the factor to.
        factor: `factor(number)` of a batch, counted from 0; the same on every process.
    """

    batches: Batches
    factor: Callable[[int], float]

    def iterate(self, start: int, rows: np.ndarray) -> Iterator[HostBatch]:
        """Yields some rows of each step's batch."""
        for number, batch in enumerate(self.batches.iterate(start, rows), start):
            yield with_poison(batch, self.factor(number))
