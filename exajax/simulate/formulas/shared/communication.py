"""What a block sends over each mesh axis, over arrays of layouts."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from exajax.models.dimensions import ModelConfig
from exajax.recipe.recipe import REMATS
from exajax.simulate.formulas.shared.blocks import RECOMPUTED
from exajax.simulate.formulas.shared.layouts import Floats, Layouts
from exajax.simulate.formulas.shared.shard import ELEMENT
from exajax.simulate.formulas.shared.weights import block_parameters
from exajax.simulate.formulas.shared.work import ProgramTraits, Work

Timed = Callable[[str, ArrayLike, ArrayLike, ArrayLike], Floats]
"""Seconds of a collective: kind, bytes, ranks, devices from one rank to the next."""


@dataclass(frozen=True)
class BlockCollectiveTimes:
    """Seconds of the collectives of one block and one micro-batch, by mesh axis; each [N].

    Attributes:
        tensor: forward, backward, and in what the backward pass recomputes.
        context: forward and backward; a ring, which overlaps with attention.
        expert: forward, backward, and recomputed.
        gathered: parameters of the block, for one pass.
        scattered: gradients of the block that each device keeps a part of.
    """

    tensor: tuple[Floats, Floats, Floats]
    context: tuple[Floats, Floats]
    expert: tuple[Floats, Floats, Floats]
    gathered: Floats
    scattered: Floats


def of_block(
    work: Work, layouts: Layouts, traits: ProgramTraits, timed: Timed
) -> BlockCollectiveTimes:
    """Seconds of the collectives of a block, overlapped or not."""
    model, software = work.model, work.software
    inner = layouts.context * layouts.tensor
    tokens = layouts.micro_batch * work.seq / layouts.context
    keys = 2 * tokens * model.kv_heads * model.head_dim / layouts.tensor * ELEMENT
    hop = timed("collective-permute", keys, layouts.context, layouts.tensor)
    ring = hop * (layouts.context - 1)
    exchanged = _exchanged(model, layouts, tokens, traits, timed)
    parameters = block_parameters(model, layouts)
    stride = inner * layouts.expert
    shards = layouts.weight_shards
    gradients = software.gradient_bytes * parameters
    return BlockCollectiveTimes(
        _tensor(work, layouts, tokens, timed),
        (ring, 2 * ring),
        (exchanged, exchanged, exchanged * _recomputed(layouts, ("experts",))),
        software.shards * timed("all-gather", 2.0 * parameters, shards, stride),
        software.shards * timed("reduce-scatter", gradients, shards, stride),
    )


def _tensor(
    work: Work, layouts: Layouts, tokens: Floats, timed: Timed
) -> tuple[Floats, Floats, Floats]:
    """Seconds of the collectives of tensor-parallel sublayers: `BlockCollectiveTimes.tensor`.

    Sublayers add up their results: an all-reduce, or where the sequence is divided between them a
    reduce-scatter behind each and an all-gather before it, which the gradients of the weights need
    once more (arXiv:2205.05198, section 4.2.2).
    """
    tensor, parallel = layouts.tensor, layouts.sequence_parallel
    stream = tokens * work.model.width * ELEMENT
    reduced = timed("all-reduce", stream, np.where(parallel, 1, tensor), 1)
    gathered = timed("all-gather", stream, np.where(parallel, tensor, 1), 1)
    scattered = timed("reduce-scatter", stream, np.where(parallel, tensor, 1), 1)
    sublayer = np.where(parallel, gathered + scattered, reduced)
    again = np.where(parallel, 2 * gathered, 0.0) * (1 - work.software.overlaps("regathers"))
    outputs = _recomputed(layouts, ("out", "down", "experts"))
    inputs = _recomputed(layouts, ("qkv", "up", "experts"))
    recomputed = np.where(parallel, inputs * gathered + outputs * scattered, outputs * reduced)
    again = np.where(inputs == 2, 0.0, again)  # what was recomputed is still there
    return 2 * sublayer, 2 * sublayer + again, recomputed


def _exchanged(
    model: ModelConfig, layouts: Layouts, tokens: Floats, traits: ProgramTraits, timed: Timed
) -> Floats:
    """Seconds of sending tokens to experts and back in one pass, [N]."""
    divided = np.where(layouts.sequence_parallel & traits.divided_tokens, layouts.tensor, 1)
    slots = traits.expert_capacity
    routed = (
        tokens / divided * slots * model.top_k * model.width * ELEMENT if model.experts else 0.0
    )
    inner = layouts.context * layouts.tensor
    return 2 * timed("all-to-all", routed, layouts.expert, inner) * model.mixture_share


def _recomputed(layouts: Layouts, parts: tuple[str, ...]) -> Floats:
    """How many of some parts of a block the backward pass recomputes, [N].

    Of dense parts and experts a block has the one or the other, so experts count only alone.
    """
    dense = [part for part in parts if part != "experts"]
    counts = [
        float(sum(part in RECOMPUTED[remat] for part in dense))
        if dense
        else float("experts" in RECOMPUTED[remat])
        for remat in REMATS
    ]
    return np.array(counts)[layouts.remat]
