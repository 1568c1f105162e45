"""What a block, a stage and a step send, over arrays of layouts."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from exajax.machine.software import SoftwareProfile
from exajax.models.dimensions import ModelConfig
from exajax.recipe.recipe import REMATS
from exajax.simulate.formulas.blocks import ELEMENT, REMADE
from exajax.simulate.formulas.layouts import Floats, Layouts
from exajax.simulate.formulas.saved import CAPACITY

Timed = Callable[[str, ArrayLike, ArrayLike, ArrayLike], Floats]
"""Seconds of a collective: kind, bytes, ranks, devices from one rank to the next."""


@dataclass(frozen=True)
class Sent:
    """Seconds of the collectives of one block and one micro-batch, by mesh axis; each [N].

    Attributes:
        tensor: forward, backward, and in what the backward pass makes again.
        context: forward and backward; a ring, beside attention.
        expert: forward, backward, and made again.
        gathered: parameters of the block, for one pass.
        scattered: gradients of the block that each device keeps a part of.
    """

    tensor: tuple[Floats, Floats, Floats]
    context: tuple[Floats, Floats]
    expert: tuple[Floats, Floats, Floats]
    gathered: Floats
    scattered: Floats


def of_block(
    model: ModelConfig, layouts: Layouts, seq: int, software: SoftwareProfile, timed: Timed
) -> Sent:
    """Returns what a block sends.

    Tensor-parallel sublayers add up their results: an all-reduce, or where the sequence is divided
    between them a reduce-scatter behind each and an all-gather before it, which the gradients of
    the weights need once more (arXiv:2205.05198, section 4.2.2).
    """
    tensor, inner = layouts.tensor, layouts.context * layouts.tensor
    tokens = layouts.micro_batch * seq / layouts.context
    whole = tokens * model.width * ELEMENT
    parallel = layouts.sequence_parallel
    reduced = timed("all-reduce", whole, np.where(parallel, 1, tensor), 1)
    gathered = timed("all-gather", whole, np.where(parallel, tensor, 1), 1)
    scattered = timed("reduce-scatter", whole, np.where(parallel, tensor, 1), 1)
    sublayer = np.where(parallel, gathered + scattered, reduced)
    again = np.where(parallel, 2 * gathered, 0.0) * (1 - software.hides("regathers"))
    remade_out = _remade(layouts, ("out", "down", "experts"))
    remade_in = _remade(layouts, ("qkv", "up", "experts"))
    remade = np.where(parallel, remade_in * gathered + remade_out * scattered, remade_out * reduced)
    again = np.where(remade_in == 2, 0.0, again)  # what was made again is still there

    keys = 2 * tokens * model.kv_heads * model.head_dim / tensor * ELEMENT
    turn = timed("collective-permute", keys, layouts.context, tensor)
    ring = turn * (layouts.context - 1)

    # Ours sends whole tokens; others, where the sequence is divided, each device its own part.
    ours = software.program == "jax"
    apart = np.where(parallel & (not ours), tensor, 1)
    room = CAPACITY if ours else 1.0
    routed = tokens / apart * room * model.top_k * model.width * ELEMENT if model.experts else 0.0
    exchanged = 2 * timed("all-to-all", routed, layouts.expert, inner) * model.mixture_share
    parameters = block_parameters(model, layouts)
    stride = inner * layouts.expert
    shards = layouts.weight_shards
    return Sent(
        (2 * sublayer, 2 * sublayer + again, remade),
        (ring, 2 * ring),
        (exchanged, exchanged, exchanged * _remade(layouts, ("experts",))),
        software.shards * timed("all-gather", 2.0 * parameters, shards, stride),
        software.shards
        * timed("reduce-scatter", software.gradient_bytes * parameters, shards, stride),
    )


def _remade(layouts: Layouts, parts: tuple[str, ...]) -> Floats:
    """Returns how many of some parts of a block the backward pass makes again."""
    dense = [part for part in parts if part != "experts"]
    counts = [
        float(sum(part in REMADE[remat] for part in dense))
        if len(dense)
        else float("experts" in REMADE[remat])
        for remat in REMATS
    ]
    return np.array(counts)[layouts.remat]


def block_parameters(model: ModelConfig, layouts: Layouts) -> Floats:
    """Returns the parameters of a block on one device before the batch axes shard them."""
    outside = end_parameters(model)
    per_block = (model.parameters - outside) / model.layers
    if not model.mixture_layers:
        return per_block / layouts.tensor
    experts = 3 * model.width * model.ffn * model.experts * model.mixture_layers / model.layers
    return ((per_block - experts) + experts / layouts.expert) / layouts.tensor


def end_parameters(model: ModelConfig) -> float:
    """Returns the parameters outside of blocks: tables, positions, final norm."""
    table = model.width * model.padded_vocab
    return float(table if model.family == "gpt" else 2 * table)


def of_gradients(
    layouts: Layouts, parameters: Floats, software: SoftwareProfile, timed: Timed
) -> tuple[Floats, Floats]:
    """Returns the seconds in which replicas add up gradients, and gather what each has updated.

    Args:
        layouts: how.
        parameters: of a device before the axes of the batch shard them, shape [N].
        software: says how wide gradients are.
        timed: prices collectives.
    """
    inner = layouts.tensor
    sharded = layouts.weight_shards
    alike = layouts.batch_shards * layouts.context // sharded  # devices with the same parameters
    stride = np.where(sharded > 1, sharded * layouts.expert * layouts.context * inner, inner)
    size = parameters * software.gradient_bytes / sharded
    divided = (layouts.zero >= 1) & (layouts.zero < 3)
    reduced = timed("all-reduce", size, np.where(divided, 1, alike), stride)
    scattered = timed("reduce-scatter", size, np.where(divided, alike, 1), stride)
    updated = timed("all-gather", 2.0 * parameters / sharded, np.where(divided, alike, 1), stride)
    return reduced + scattered, updated
