"""Batches of which some are left out."""

from collections.abc import Iterable, Iterator

import numpy as np

from exajax.train.data.batches import Batches, HostBatch


class Skipping:
    """Batches of a run that has stepped over some of them.

    The batch of step n is the nth of those that are not skipped, so which samples a step sees still
    follows from its number alone, and from what is skipped.

    Args:
        batches: all of them, in order.
    """

    def __init__(self, batches: Batches) -> None:
        self._batches = batches
        self.skipped: frozenset[int] = frozenset()

    def skip(self, numbers: Iterable[int]) -> None:
        """Leaves out more batches; what `iterate` has begun with does not change."""
        self.skipped |= frozenset(numbers)

    def number(self, step: int) -> int:
        """Returns the number of the batch that a step sees, both from 0."""
        number = step
        for skipped in sorted(self.skipped):
            if skipped > number:
                break
            number += 1
        return number

    def iterate(self, start: int, rows: np.ndarray) -> Iterator[HostBatch]:
        """Yields some rows of each step's batch, in order."""
        first, skipped = self.number(start), self.skipped
        for number, batch in enumerate(self._batches.iterate(first, rows), first):
            if number not in skipped:
                yield batch
