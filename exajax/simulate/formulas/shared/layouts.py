"""Ways to lay one training step over devices, as columns of equal length."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from exajax.recipe.recipe import REMATS, Recipe

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


def distinct(*columns: NDArray[Any]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Index of the first of each distinct row, [U], and for each row which of them it is, [N].

    As `numpy.unique` of rows, which compares whole rows and is twenty times slower.

    Args:
        columns: arrays of shape [N].
    """
    codes = np.zeros(len(columns[0]), np.int64)
    for column in columns:
        values, which = np.unique(column, return_inverse=True)
        codes = codes * len(values) + which
    _, first, which = np.unique(codes, return_index=True, return_inverse=True)
    return first, which


ONE_DEVICE: dict[str, int | bool] = {
    **dict.fromkeys(("pipe", "data", "fsdp", "expert", "context", "tensor"), 1),
    "interleave": 1,
    "micro_batch": 1,
    "zero": 0,
    "remat": 0,
    "sequence_parallel": False,
    "flash": False,
    "gpipe": False,
}
"""The fields of `Layouts` on one device, in order."""


@dataclass(frozen=True)
class Layouts:
    """Layouts of one model at one global batch; every field is an array of shape [N].

    Attributes:
        pipe: pipeline stages.
        data: ways the batch is divided; `zero` says what else this axis shards.
        fsdp: ways the batch and all state are divided.
        expert: ways the batch and the experts of a mixture are divided.
        context: ways a sequence is divided.
        tensor: ways matrices are divided, the mesh axis `model`.
        interleave: parts of the layers that a stage holds.
        micro_batch: sequences of a micro-batch on each shard of the batch.
        zero: what the data axis shards: 0 nothing, 1 optimizer state, 2 gradients too, 3 all.
        remat: index into `REMATS`.
        sequence_parallel: whether `tensor` divides the sequence between sublayers.
        flash: whether attention is fused.
        gpipe: whether all micro-batches go forward before the first goes backward.
    """

    pipe: Ints
    data: Ints
    fsdp: Ints
    expert: Ints
    context: Ints
    tensor: Ints
    interleave: Ints
    micro_batch: Ints
    zero: Ints
    remat: Ints
    sequence_parallel: Bools
    flash: Bools
    gpipe: Bools

    @classmethod
    def of(cls, **columns: ArrayLike) -> "Layouts":
        """Layouts from columns or single values; what is not given is as on one device."""
        values = [
            np.atleast_1d(np.asarray(columns.get(name, default), type(default)))
            for name, default in ONE_DEVICE.items()
        ]
        return cls(*np.broadcast_arrays(*values))

    @classmethod
    def of_recipes(cls, recipes: Sequence[Recipe], flash: bool = True) -> "Layouts":
        """The layouts of recipes, [N].

        Args:
            recipes: whose `zero` is a level.
            flash: whether `auto` attention is fused on the chip.
        """
        return cls.of(
            pipe=[r.mesh.pipe for r in recipes],
            data=[r.mesh.data for r in recipes],
            fsdp=[r.mesh.fsdp for r in recipes],
            expert=[r.mesh.expert for r in recipes],
            context=[r.mesh.context for r in recipes],
            tensor=[r.mesh.model for r in recipes],
            interleave=[r.interleave for r in recipes],
            micro_batch=[r.micro_batch for r in recipes],
            zero=[int(r.zero) for r in recipes],
            remat=[REMATS.index(r.remat) for r in recipes],
            sequence_parallel=[r.sequence_parallel for r in recipes],
            flash=[r.attention == "flash" or (r.attention == "auto" and flash) for r in recipes],
            gpipe=[r.schedule == "gpipe" for r in recipes],
        )

    def __len__(self) -> int:
        return len(self.pipe)

    def take(self, rows: NDArray[Any]) -> "Layouts":
        """Some of the layouts, by number or by mask."""
        return dataclasses.replace(
            self, **{column.name: getattr(self, column.name)[rows] for column in fields(self)}
        )

    @property
    def devices(self) -> Ints:
        """Devices of each layout."""
        sharded: Ints = self.batch_shards * self.context * self.tensor * self.pipe
        return sharded

    @property
    def batch_shards(self) -> Ints:
        """Parts that the global batch is divided into."""
        shards: Ints = self.data * self.fsdp * self.expert
        return shards

    def micro_batches(self, global_batch: int) -> Ints:
        """Micro-batches of a step that go through the layers one after the other, [N]."""
        parts: Ints = global_batch // (self.batch_shards * self.micro_batch)
        return parts

    @property
    def state_shards(self) -> Ints:
        """Ways that optimizer state is divided over the axes of the batch."""
        shards: Ints = self.fsdp * np.where(self.zero >= 1, self.data, 1)
        return shards

    @property
    def weight_shards(self) -> Ints:
        """Ways that parameters are divided over the axes of the batch."""
        shards: Ints = self.fsdp * np.where(self.zero >= 3, self.data, 1)
        return shards
