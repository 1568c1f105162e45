"""Parameters of a device, over arrays of layouts: how many there are, and its share of each."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from exajax.models.dimensions import ModelConfig
from exajax.simulate.formulas.shared.layouts import Floats, Ints, Layouts

LEVELS = {"optimizer": 1, "gradients": 2, "parameters": 3}
"""The level of ZeRO from which on the data axis divides something (arXiv:1910.02054)."""


@dataclass(frozen=True)
class Weights:
    """Parameters of one kind in the stage that has most of them.

    Attributes:
        count: on a device before the axes of the batch divide them, shape [N].
        sizes: of the dimensions of their arrays that nothing divides yet, shape [K, N].
        expert: whether `expert` has divided them already.
    """

    count: Floats
    sizes: Ints
    expert: bool = False

    def share(self, layouts: Layouts, kind: str, *, flat: bool) -> Floats:
        """Parameters whose values, gradients or moments a device has, shape [N].

        Args:
            layouts: how.
            kind: of `LEVELS`.
            flat: whether arrays are divided as one long row, which always works. Else one
                dimension is divided, by all axes that are to divide it or by the first of them
                (`sharding.shard_over`); what none divides stays whole.
        """
        first = layouts.fsdp * np.where(self.expert, 1, layouts.expert)
        data = np.where(layouts.zero >= LEVELS[kind], layouts.data, 1)
        if flat:
            return self.count / (first * data)
        by_all = (self.sizes % (first * data) == 0).any(axis=0)
        by_first = (self.sizes % first == 0).any(axis=0)
        return self.count / np.where(by_all, first * data, np.where(by_first, first, 1))


def block_parameters(model: ModelConfig, layouts: Layouts) -> Floats:
    """Parameters of a block on one device before the batch axes shard them, shape [N]."""
    outside = end_parameters(model)
    per_block = (model.parameters - outside) / model.layers
    if not model.mixture_layers:
        return per_block / layouts.tensor
    experts = 3 * model.width * model.ffn * model.experts * model.mixture_layers / model.layers
    return ((per_block - experts) + experts / layouts.expert) / layouts.tensor


def end_parameters(model: ModelConfig) -> float:
    """Parameters outside of blocks: tables of tokens and logits; one where they are tied."""
    table = model.width * model.padded_vocab
    return float(table if model.tied else 2 * table)


def share(parts: Iterable[Weights], layouts: Layouts, kind: str, *, flat: bool = False) -> Floats:
    """The sum of `Weights.share` over several kinds of parameters, shape [N]."""
    total: Floats = np.sum([part.share(layouts, kind, flat=flat) for part in parts], axis=0)
    return total


def of_stage(
    model: ModelConfig, layouts: Layouts, tables: ArrayLike | None = None
) -> tuple[Weights, Weights, Weights]:
    """Parameters of attention and feed-forward, of experts, and of the tables in one stage.

    Args:
        model: its dimensions.
        layouts: how; of a pipeline, a stage with most blocks counts.
        tables: share of the tables that the stage has; where it is not given, `pipe` divides them
            like the axes of the batch.
    """
    blocks = np.ceil(model.layers / layouts.pipe)
    ends = end_parameters(model)
    per_block = (model.parameters - ends) / model.layers
    experts = 3.0 * model.width * model.ffn * model.experts * model.mixture_layers / model.layers
    width = np.full(len(layouts), model.width)
    undivided = layouts.tensor == 1
    outside = ends / layouts.tensor
    if tables is None:
        outside = outside / np.where(model.width % layouts.pipe == 0, layouts.pipe, 1)
    return (
        Weights(blocks * (per_block - experts) / layouts.tensor, _sizes(width)),
        Weights(
            blocks * experts / (layouts.expert * layouts.tensor),
            _sizes(width, np.where(undivided, model.ffn, model.width)),
            expert=True,
        ),
        Weights(
            outside * (1.0 if tables is None else np.asarray(tables)),
            _sizes(width, np.where(undivided, model.padded_vocab, model.width)),
        ),
    )


def _sizes(*dimensions: Ints) -> Ints:
    return np.stack(dimensions)
