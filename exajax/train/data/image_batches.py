"""Batches of images: which is where in the run follows from seed and position alone."""

import functools
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from exajax.train.data.images import Images, Split


@dataclass(frozen=True)
class ImageBatches:
    """Batches of images by step number.

    The image at position `step * batch + row` of the run is a function of the data, the seed and
    that position. Every epoch is a permutation of all images, so each is seen once before any is
    seen again, on any number of hosts and after any restart.

    Attributes:
        corpus: the images.
        batch: images of a step.
        seed: of the order.
    """

    corpus: Images
    batch: int
    seed: int

    @property
    def identity(self) -> dict[str, Any]:
        """What two runs of the same samples have in common, as JSON."""
        return {"sha256": self.corpus.sha256, "seed": self.seed}

    def __call__(self, step: int) -> dict[str, np.ndarray]:
        """Returns the whole batch of a step: `images` float32 [B, S, S, C], `labels` int32 [B]."""
        return self._batch(self.corpus.train, self.ids(step))

    def ids(self, step: int) -> np.ndarray:
        """Returns which images a step trains on, int64 [batch].

        Args:
            step: number of the step, from 0.
        """
        return self._ids_of(step, np.arange(self.batch))

    def iterate(self, start: int, rows: np.ndarray) -> Iterator[dict[str, np.ndarray]]:
        """Yields, from step `start` on, some rows of each step's batch, in order."""
        for step in itertools.count(start):
            yield self._batch(self.corpus.train, self._ids_of(step, rows))

    def held_out(self, batches: int) -> Iterator[dict[str, np.ndarray]]:
        """Yields at most so many batches, evenly spread over the held-out images."""
        count = len(self.corpus.held_out)
        wanted = min(batches * self.batch, count // self.batch * self.batch) or self.batch
        ids = np.linspace(0, count - 1, wanted).astype(np.int64)
        for first in range(0, wanted, self.batch):
            yield self._batch(self.corpus.held_out, ids[first : first + self.batch])

    def _ids_of(self, step: int, rows: np.ndarray) -> np.ndarray:
        count = len(self.corpus.train)
        epochs, within = np.divmod(step * self.batch + rows, count)
        ids = np.empty(len(rows), np.int64)
        for epoch in np.unique(epochs):
            ids[epochs == epoch] = _order(count, self.seed, int(epoch))[within[epochs == epoch]]
        return ids

    def _batch(self, split: Split, ids: np.ndarray) -> dict[str, np.ndarray]:
        """Returns some images, each channel of mean 0 and deviation 1, and their labels."""
        pixels = split.images[ids].astype(np.float32)
        scaled = (pixels - self.corpus.mean) / self.corpus.deviation
        return {"images": scaled, "labels": split.labels[ids]}


@functools.lru_cache(maxsize=2)  # a step may straddle two epochs
def _order(count: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(count)
