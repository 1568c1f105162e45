"""Collectives and copies that exajax's step does not overlap with compute, over arrays of layouts.

Shares are figures of `meshes/programs/xla.toml`.
"""

import numpy as np

from exajax.models.dimensions import ModelConfig
from exajax.recipe.recipe import REMATS
from exajax.simulate.formulas.shared import communication
from exajax.simulate.formulas.shared.communication import Timed
from exajax.simulate.formulas.shared.layouts import Bools, Floats, Layouts
from exajax.simulate.formulas.shared.work import Work
from exajax.simulate.formulas.xla.figures import xla_figures
from exajax.simulate.formulas.xla.stage import StageParameters

SMALL_GROUP = 8
"""Ways of `tensor` below which a group is small."""


def tensor_s(
    collectives_s: communication.BlockCollectiveTimes, layouts: Layouts, room: Bools
) -> Floats:
    """Exposed seconds of tensor-parallel sublayers in a block, [N].

    What gradients of weights need gathered once more, and what is recomputed, overlaps with compute
    where the scheduler has memory left (`room`), and so do parts of the rest.
    """
    figures = xla_figures().tensor_exposed
    forward, backward, recomputed = collectives_s.tensor
    undivided = (layouts.weight_shards == 1) & (layouts.zero < 2)
    piped = (layouts.pipe > 1) & layouts.sequence_parallel
    shares = np.select(
        [piped, undivided & (layouts.tensor < SMALL_GROUP), undivided],
        [figures.pipeline[0], figures.small_group, figures.large_group],
        figures.sharded,
    )
    again = figures.pipeline_recomputed
    with_room = shares * forward + np.where(piped, again[0] * recomputed, 0.0)
    without = np.where(
        piped,
        figures.pipeline[1] * forward + again[1] * recomputed,
        forward + backward + recomputed,
    )
    return np.where(room, with_room, without)


def context_s(
    collectives_s: communication.BlockCollectiveTimes,
    stage: StageParameters,
    layouts: Layouts,
    attention_s: Floats,
    room: Bools,
    timed: Timed,
) -> Floats:
    """Exposed seconds of a block's ring, [N].

    Keys and values go around; and gradients are added up, of which each device of the ring has
    those of its own tokens: what a device keeps of them, in bf16, in every micro-batch. Steps of a
    ring overlap with attention alone, so what takes longer is exposed however much room there is.

    Args:
        collectives_s: collectives of a block.
        stage: parameters of a stage.
        layouts: the layouts.
        attention_s: seconds of a block's attention in a ring, forward and backward.
        room: whether the scheduler has memory left.
        timed: prices collectives.
    """
    figures = xla_figures().ring_exposed
    saves = layouts.remat == REMATS.index("none")
    passes = figures.passes[0] * np.where(saves, 1, 2) + figures.passes[1]
    around = (passes + 1 / np.maximum(1, layouts.context - 1)) * collectives_s.context[0]
    local: Floats = 2.0 * np.sum(stage.local[:-1], axis=0) / stage.blocks
    added = timed("all-reduce", local, layouts.context, layouts.tensor)
    around_share, added_share = (
        np.where(room, with_memory, without)
        for with_memory, without in zip(figures.with_memory, figures.without_memory, strict=True)
    )
    exposed = np.maximum(around_share * around, around - attention_s)
    return exposed + np.where(around > attention_s, 1.0, added_share) * added


def sharded_s(
    stage: StageParameters, layouts: Layouts, work: Work, timed: Timed
) -> tuple[Floats, Floats, Floats]:
    """Seconds of gathering a block's parameters, forward and backward, and of scattering, [N].

    Parameters of experts are divided over fewer devices than others. What no axis divides is not
    gathered, and its gradients are added up undivided.
    """
    inner = layouts.context * layouts.tensor
    gathered, scattered = np.zeros(len(layouts)), np.zeros(len(layouts))
    for part, local in zip(stage.parts[:-1], stage.local[:-1], strict=True):
        size = 2.0 * part.count / stage.blocks
        ways = np.round(part.count / np.maximum(local, 1))
        expert = np.where(part.expert, 1, layouts.expert)
        stride = inner * np.where(part.expert, layouts.expert, 1)
        wanted = layouts.fsdp * expert * np.where(layouts.zero >= 3, layouts.data, 1)
        gathered += timed("all-gather", size, ways, stride)
        scattered += timed("reduce-scatter", size, ways, stride)
        scattered += timed("all-reduce", size, np.where(ways == 1, wanted, 1), stride)
    shards = work.software.shards
    twice = (layouts.remat == REMATS.index("full")) & (layouts.tensor > 1)
    again = np.where(twice, xla_figures().exposed.gathered_recomputed, 1.0)
    return shards * gathered, shards * again * gathered, shards * scattered


def tables_s(
    model: ModelConfig, stage: StageParameters, layouts: Layouts, timed: Timed
) -> tuple[Floats, Floats]:
    """Exposed seconds of the tables in a micro-batch: of fsdp, of the ring, [N].

    A ring adds up their gradients. Where fsdp divides them, the table of tokens is gathered once,
    that of logits for the products of each direction, or the one of both once; the gradients of
    logits are scattered, and those of tokens added up undivided over all devices that have other
    tokens, as `exajax.models.layers.Embedding` does. Counted in llama3-8b on
    `pipe=2,fsdp=2,context=2,model=2` and gpt2-124m on `pipe=4,fsdp=4,context=4`.

    All of it is exposed in a pipeline, in whose every slot the first and the last stage's work are
    branches (`exajax.spmd.pipeline`) in which nothing overlaps, and next to a ring, as llama3-8b on
    `fsdp=2,context=8,model=2` has it. Other programs gather tables while they compute.
    """
    piped, ring = layouts.pipe > 1, layouts.context
    table = 2.0 * model.width * model.padded_vocab / layouts.tensor
    shards = layouts.fsdp * layouts.expert * np.where(layouts.zero >= 3, layouts.data, 1)
    ways = np.where(piped | (ring > 1), shards, 1)
    times = 1 if model.tied else 3
    gathered = times * timed("all-gather", table, ways, ring * layouts.tensor)
    scattered = timed("reduce-scatter", table, ways, ring * layouts.tensor)
    tokens = timed("all-reduce", table, np.where(shards > 1, ways * ring, 1), layouts.tensor)
    local = np.where(piped & (shards > 1), table / shards, 2.0 * stage.local[-1])
    return gathered + scattered + tokens, timed("all-reduce", local, ring, layouts.tensor)


def gradients_s(
    stage: StageParameters,
    layouts: Layouts,
    several: Bools,
    backward_s: Floats,
    room: Bools,
    timed: Timed,
) -> Floats:
    """Exposed seconds of adding up gradients over replicas, and of gathering what was updated, [N].

    Gradients of one micro-batch are added up block by block in bf16, those of several in one go
    behind the last, in fp32. ZeRO 1 adds up all of them on every device and keeps a part, ZeRO 2
    scatters them; both gather what has been updated in fp32.

    Args:
        stage: parameters of a stage.
        layouts: the layouts.
        several: whether gradients are sums over micro-batches.
        backward_s: seconds of the backward pass over a block.
        room: whether the scheduler has memory left.
        timed: prices collectives.
    """
    figures = xla_figures().exposed
    local: Floats = np.sum(stage.local, axis=0)
    ways = np.where(layouts.zero < 3, layouts.data, 1)
    stride = layouts.devices // (layouts.data * layouts.pipe)
    scatters = layouts.zero == 2
    size = np.where(several, 4.0, 2.0 / stage.blocks) * local
    summed = timed("all-reduce", size, np.where(scatters, 1, ways), stride)
    summed = summed + timed("reduce-scatter", size, np.where(scatters, ways, 1), stride)
    overlapped = np.where(room, figures.gradients_overlap * backward_s, 0.0)
    in_blocks = stage.blocks * np.maximum(0.0, summed - overlapped)
    alone = ~room | (layouts.pipe > 1)
    reduced = np.where(alone, figures.without_overlap, figures.gradients_reduced) * summed
    divided = (layouts.zero == 1) | (layouts.zero == 2)
    gathered = timed("all-gather", 4.0 * local, np.where(divided, ways, 1), stride)
    updated = np.where(alone, figures.without_overlap, figures.parameters_gathered) * gathered
    return np.where(several, reduced, in_blocks) + updated


def offloaded_s(work: Work, layouts: Layouts) -> Floats:
    """Exposed seconds of copying a block's products to the host and back, [N]."""
    model = work.model
    T, t = layouts.micro_batch * work.seq / layouts.context, layouts.tensor
    numbers = (model.heads + 2 * model.kv_heads) * model.head_dim + model.up_matrices * model.ffn
    sent = 2 * T * (numbers / t + model.width / np.where(layouts.sequence_parallel, t, 1))
    offloads = layouts.remat == REMATS.index("offload")
    share = xla_figures().exposed.offloaded
    return np.where(offloads, share * 2 * sent / work.chip.host_bandwidth, 0.0)
