"""The part of a micro-batch and of a block that one device has, over arrays of shapes."""

from dataclasses import dataclass

import numpy as np

from exajax.simulate.formulas.shared.layouts import Bools, Floats, Layouts, distinct

ELEMENT = 2.0
"""Bytes of an activation."""


@dataclass(frozen=True)
class Shard:
    """The part of a micro-batch and of a block that one device has; arrays of shape [U].

    Attributes:
        sequences: of the micro-batch.
        seq: tokens of each.
        context: ways a sequence is divided.
        tensor: ways matrices are divided.
        expert: ways experts are divided.
        sequence_parallel: whether the sequence is divided by `tensor` between sublayers.
        flash: whether attention is fused.
    """

    sequences: Floats
    seq: int
    context: Floats
    tensor: Floats
    expert: Floats
    sequence_parallel: Bools
    flash: Bools

    @classmethod
    def distinct(cls, layouts: Layouts, seq: int) -> "tuple[Shard, np.ndarray]":
        """The shards that differ, [U], and for each layout which of them it has, shape [N]."""
        names = ("micro_batch", "context", "tensor", "expert", "sequence_parallel", "flash")
        columns = [getattr(layouts, name) for name in names]
        first, which = distinct(*columns)
        micro_batch, context, tensor, expert = (c[first].astype(float) for c in columns[:4])
        parallel, flash = (column[first] for column in columns[4:])
        return cls(micro_batch, seq, context, tensor, expert, parallel, flash), which

    @property
    def tokens(self) -> Floats:
        """Tokens of the micro-batch that a device has within a sublayer."""
        return self.sequences * self.seq / self.context

    @property
    def tokens_between(self) -> Floats:
        """Tokens that it has between sublayers."""
        return self.tokens / np.where(self.sequence_parallel, self.tensor, 1)

    @property
    def queries(self) -> Floats:
        """Positions of each sequence that a device has."""
        return self.seq / self.context
