"""Batches of a corpus: which window is where in the run follows from seed and position alone."""

import functools
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from exajax.train.data.batches import HostBatch
from exajax.train.data.corpus import Corpus
from exajax.train.data.windows import Windows

if TYPE_CHECKING:
    import grain

THREADS = 2
AHEAD = 8
"""Batches that are read before they are asked for."""


@dataclass(frozen=True)
class TextBatches:
    """Batches of a corpus by step number.

    The sample at position `step * batch + row` of the run is a function of the corpus, the seed and
    that position. Every epoch of a part is a permutation of all its windows, so each is seen once
    before any is seen again, on any number of hosts and after any restart. Parts are mixed in a
    fixed rotation that holds their weights to a hundredth of the smallest.

    Attributes:
        corpus: the text.
        batch: sequences of a step.
        seed: of the order.
        packed: whether documents of a window are trained on apart. Batches then also have
            `segments`, the document of the window that a token is of, and the target behind the end
            of a document is -1: it does not count in the loss. A window may begin in the middle of
            a document, which then is a document of its own.
    """

    corpus: Corpus
    batch: int
    seed: int
    packed: bool = False

    @property
    def identity(self) -> dict[str, Any]:
        """What two runs of the same samples have in common, as JSON."""
        return self.corpus.identity | {"seed": self.seed, "packed": self.packed}

    def ids(self, step: int) -> np.ndarray:
        """Returns the samples of a step, int64 [batch]: numbers of windows, counted over all parts.

        Args:
            step: number of the step, from 0.
        """
        return self._ids_of(step, np.arange(self.batch))

    def iterate(self, start: int, rows: np.ndarray) -> Iterator[HostBatch]:
        """Yields some rows of each step's batch, read ahead by threads of Grain.

        Args:
            start: number of the first step, from 0.
            rows: which rows of the global batch, sorted.
        """
        import grain

        def read(step: int) -> HostBatch:
            return self._batch([part.train for part in self.corpus.parts], self._ids_of(step, rows))

        steps = grain.MapDataset.range(start, sys.maxsize).map(read)
        ahead = grain.ReadOptions(num_threads=THREADS, prefetch_buffer_size=AHEAD)
        iterator = iter(steps.to_iter_dataset(ahead))
        try:
            yield from iterator
        finally:
            iterator.close()

    def held_out(self, batches: int) -> Iterator[HostBatch]:
        """Yields at most so many batches, evenly spread over the held-out text by its weights."""
        parts = [part.held_out for part in self.corpus.parts]
        there = sum(map(len, parts)) // self.batch * self.batch
        wanted = min(batches * self.batch, there) or self.batch
        weights = np.cumsum([0.0, *(part.weight for part in self.corpus.parts)])
        edges = np.round(weights * wanted).astype(int)
        ids = np.concatenate(
            [
                first + np.linspace(0, len(part) - 1, count).astype(np.int64)
                for part, first, count in zip(parts, _firsts(parts), np.diff(edges), strict=True)
            ]
        )
        for begin in range(0, wanted, self.batch):
            yield self._batch(parts, ids[begin : begin + self.batch])

    @functools.cached_property
    def _order(self) -> "grain.MapDataset[np.int64]":
        """The samples of the run by position, without end."""
        import grain

        windows = [part.train for part in self.corpus.parts]
        orders = [
            grain.MapDataset.range(first, first + len(part)).shuffle(_seed(self.seed, i)).repeat()
            for i, (part, first) in enumerate(zip(windows, _firsts(windows), strict=True))
        ]
        if len(orders) == 1:
            return orders[0]
        return grain.MapDataset.mix(orders, [part.weight for part in self.corpus.parts])

    def _ids_of(self, step: int, rows: np.ndarray) -> np.ndarray:
        order = self._order
        return np.array([order[place] for place in (step * self.batch + rows).tolist()], np.int64)

    def _batch(self, parts: list[Windows], ids: np.ndarray) -> HostBatch:
        tokens = np.empty((len(ids), self.corpus.seq + 1), np.int32)
        firsts = _firsts(parts)
        owners = np.searchsorted(firsts, ids, side="right") - 1
        for number in np.unique(owners):
            mine = owners == number
            tokens[mine] = parts[number].read(ids[mine] - firsts[number])
        batch = {"inputs": tokens[:, :-1], "targets": tokens[:, 1:]}
        if self.packed:
            end = self.corpus.vocabulary.end_of_document
            batch["segments"] = segments(tokens, end)
            batch["targets"] = np.where(batch["inputs"] == end, np.int32(-1), batch["targets"])
        return batch


def segments(tokens: np.ndarray, end: int) -> np.ndarray:
    """Returns the number of the document within its window that every input is of.

    Args:
        tokens: windows, int32 [n, seq + 1].
        end: the token that ends a document; it is of the document that it ends.

    Returns:
        int32 [n, seq], from 0.
    """
    ended = np.cumsum(tokens[:, :-2] == end, axis=1, dtype=np.int32)
    return np.pad(ended, ((0, 0), (1, 0)))


def _firsts(parts: list[Windows]) -> np.ndarray:
    """Returns the number of each part's first window, where windows are counted over all parts."""
    return np.cumsum([0, *map(len, parts[:-1])])


def _seed(seed: int, part: int) -> int:
    """Returns a seed of 32 bits: Grain counts it up with every epoch, so neighbours will not do."""
    return int(np.random.SeedSequence([seed, part]).generate_state(1)[0])
