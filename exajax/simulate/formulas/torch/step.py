"""Time of a step of Megatron-LM, and of those that took it over, in every layout."""

from functools import partial

import numpy as np

from exajax.machine.software import SoftwareProfile
from exajax.simulate.formulas.shared import communication
from exajax.simulate.formulas.shared.collectives import group_s
from exajax.simulate.formulas.shared.communication import Timed
from exajax.simulate.formulas.shared.kernels import bytes_s
from exajax.simulate.formulas.shared.layouts import Floats, Layouts
from exajax.simulate.formulas.shared.outside_blocks import outside_blocks_of
from exajax.simulate.formulas.shared.results import Footprint, Times, slowest_share
from exajax.simulate.formulas.shared.shard import ELEMENT, Shard
from exajax.simulate.formulas.shared.weights import block_parameters, end_parameters
from exajax.simulate.formulas.shared.work import Work
from exajax.simulate.formulas.torch.figures import torch_figures
from exajax.simulate.formulas.torch.memory import memory
from exajax.simulate.formulas.torch.micro_batch import (
    BlockTimes,
    block_times,
    passes_of,
    sum_of_exposed,
    traits,
)


def step(work: Work, layouts: Layouts) -> tuple[Times, Footprint]:
    """Time and memory of a step in every layout, each as if it stood alone.

    The stages of a pipeline work on one micro-batch after the other, at the pace of the slowest of
    them. Before it is busy, and behind, it waits for what the others do for one micro-batch, less
    where each holds several parts of the layers (arXiv:2104.04473, section 2.2).
    """
    model, software = work.model, work.software
    timed = partial(group_s, cluster=work.cluster)
    shard, which = Shard.distinct(layouts, work.seq)
    collectives_s = communication.of_block(work, layouts, traits(), timed)
    block = block_times(work, layouts, passes_of(work, layouts, shard, which), collectives_s)
    outside = outside_blocks_of(work, shard, which, traits())

    micro_batches, alone = layouts.micro_batches(work.global_batch), layouts.pipe == 1
    deepest = np.ceil(model.layers / layouts.pipe)
    in_end_stages = np.where(
        alone, outside.head + outside.table, np.maximum(outside.head, outside.table)
    )
    slowest = deepest * block.total + in_end_stages
    others = model.layers * block.total + outside.head + outside.table - slowest
    bubble = np.where(alone, 0.0, others / layouts.interleave)
    blocks = micro_batches * deepest
    computing = blocks * block.compute + micro_batches * in_end_stages
    products = blocks * block.products + micro_batches * outside.products
    parameters = _parameters(work, layouts)
    updated = torch_figures().updated * parameters / layouts.state_shards
    update_s = software.memory * bytes_s(updated, work.chip)
    share = slowest_share(layouts, work.cluster)
    times = Times(
        compute=products,
        memory_bound=computing - products,
        optimizer=update_s,
        other=blocks * block.host + software.step_s,
        tensor=blocks * block.tensor,
        context=blocks * block.context,
        expert=blocks * block.expert,
        shards=blocks * block.shards,
        gradients=_gradients_s(work, layouts, parameters, block, timed),
        stages=_stages_s(work, layouts, micro_batches),
        bubble=bubble,
        stragglers=share * (computing + blocks * block.host + bubble + update_s),
    )
    return times, memory(work, layouts)


def _parameters(work: Work, layouts: Layouts) -> Floats:
    """Parameters of a device before the axes of the batch shard them, [N].

    Of two tables a stage has one; where there is one, both ends have it.
    """
    model = work.model
    deepest = np.ceil(model.layers / layouts.pipe)
    tables = np.where((layouts.pipe == 1) | model.tied, 1.0, 0.5)
    return deepest * block_parameters(model, layouts) + (
        end_parameters(model) / layouts.tensor * tables
    )


def _gradients_s(
    work: Work, layouts: Layouts, parameters: Floats, block: BlockTimes, timed: Timed
) -> Floats:
    """Exposed seconds of adding up gradients over replicas and gathering updated parameters, [N].

    Gradients are on their way during the last micro-batch's backward pass through the other blocks,
    updated parameters during the first one's forward pass, as far as nothing else is.

    Args:
        work: the step.
        layouts: the layouts.
        parameters: of a device before the axes of the batch shard them, [N].
        block: times of a block.
        timed: prices collectives.
    """
    model, software = work.model, work.software
    deepest = np.ceil(model.layers / layouts.pipe)
    reduced, updated = _replicas_s(layouts, parameters, software, timed)
    forward, backward = block.free
    in_backward = (deepest - 1) * backward * software.overlaps("gradients")
    in_forward = deepest * forward * software.overlaps("parameters")
    exposed = sum_of_exposed(((reduced, in_backward), (updated, in_forward)))
    if not model.tied:
        return exposed
    table = model.width * model.padded_vocab / layouts.tensor * software.gradient_bytes
    apart = layouts.devices // layouts.pipe * (layouts.pipe - 1)
    return exposed + timed("all-reduce", table, np.minimum(layouts.pipe, 2), apart)


def _replicas_s(
    layouts: Layouts, parameters: Floats, software: SoftwareProfile, timed: Timed
) -> tuple[Floats, Floats]:
    """Seconds of adding up gradients over replicas, and of gathering what each has updated, [N].

    Args:
        layouts: the layouts.
        parameters: of a device before the axes of the batch shard them, [N].
        software: says how wide gradients are.
        timed: prices collectives.
    """
    inner = layouts.tensor
    sharded = layouts.weight_shards
    replicas = layouts.batch_shards * layouts.context // sharded  # devices with equal parameters
    stride = np.where(sharded > 1, sharded * layouts.expert * layouts.context * inner, inner)
    size = parameters * software.gradient_bytes / sharded
    divided = (layouts.zero >= 1) & (layouts.zero < 3)
    reduced = timed("all-reduce", size, np.where(divided, 1, replicas), stride)
    scattered = timed("reduce-scatter", size, np.where(divided, replicas, 1), stride)
    gathering = np.where(divided, replicas, 1)
    updated = timed("all-gather", 2.0 * parameters / sharded, gathering, stride)
    return reduced + scattered, updated


def _stages_s(work: Work, layouts: Layouts, micro_batches: np.ndarray) -> Floats:
    """Exposed seconds of sending the stream between stages, [N]."""
    tokens = layouts.micro_batch * work.seq / layouts.context
    sent = tokens * work.model.width * ELEMENT / layouts.tensor
    apart = layouts.devices // layouts.pipe
    hop = group_s("collective-permute", sent, layouts.pipe, apart, work.cluster)
    gathered = group_s("all-gather", sent * layouts.tensor, layouts.tensor, 1, work.cluster)
    undivided = layouts.sequence_parallel | (layouts.pipe == 1)
    hop = hop + np.where(undivided, 0.0, gathered)
    exposed = 0 if work.software.overlaps("stages") else 1
    return 2 * hop * (exposed * micro_batches * layouts.interleave + layouts.pipe - 1)
