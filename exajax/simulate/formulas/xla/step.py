"""Time of a step of exajax's own program, as XLA compiles it, in every layout."""

from dataclasses import dataclass
from functools import partial

import numpy as np

from exajax.simulate.formulas.shared import communication, weights
from exajax.simulate.formulas.shared.collectives import group_s
from exajax.simulate.formulas.shared.communication import BlockCollectiveTimes, Timed
from exajax.simulate.formulas.shared.kernels import bytes_s
from exajax.simulate.formulas.shared.layouts import Bools, Floats, Layouts
from exajax.simulate.formulas.shared.outside_blocks import host_exposed_s, outside_blocks_of
from exajax.simulate.formulas.shared.results import Footprint, Times, slowest_share
from exajax.simulate.formulas.shared.saved import WITHOUT_REMAT
from exajax.simulate.formulas.shared.shard import ELEMENT, Shard
from exajax.simulate.formulas.shared.work import Work
from exajax.simulate.formulas.xla import elementwise, exposed
from exajax.simulate.formulas.xla.figures import xla_figures
from exajax.simulate.formulas.xla.memory import has_room, memory
from exajax.simulate.formulas.xla.overlap import overlap_s
from exajax.simulate.formulas.xla.passes import XlaPasses, passes_of, traits
from exajax.simulate.formulas.xla.stage import StageParameters
from exajax.simulate.timeline import OVERLAP_SLOWDOWN


@dataclass(frozen=True)
class _Block:
    """Seconds of one block and micro-batch, of shape [N] each.

    Attributes:
        computed: compute, slowed by what overlaps with it.
        tensor: exposed collectives of tensor-parallel sublayers.
        expert: exposed exchanges of tokens.
        shards: exposed gathering of parameters and scattering of gradients.
        ring: exposed collectives of a ring.
        host: the device idle for its host, and for copies to it.
    """

    computed: Floats
    tensor: Floats
    expert: Floats
    shards: Floats
    ring: Floats
    host: Floats


@dataclass(frozen=True)
class _Ends:
    """Seconds of one micro-batch outside of blocks, of shape [N] each.

    Attributes:
        computed: compute.
        products: matrix products among it.
        shards: exposed collectives of tables that fsdp divides.
        ring: exposed sums of their gradients over a ring.
        hop: sending the stream from stage to stage, one way.
    """

    computed: Floats
    products: Floats
    shards: Floats
    ring: Floats
    hop: Floats


def step(work: Work, layouts: Layouts) -> tuple[Times, Footprint]:
    """Time and memory of a step in every layout, each as if it stood alone.

    All stages of a pipeline take every slot of it, and what only the first and the last have to do
    is a part of each (`exajax.spmd.pipeline`).
    """
    timed = partial(group_s, cluster=work.cluster)
    needed = memory(work, layouts)
    room = has_room(needed, work.chip)
    micro_batches = layouts.micro_batches(work.global_batch)
    several = (micro_batches > 1) | (layouts.pipe > 1)
    stage = StageParameters.of(work.model, layouts)
    parameters = elementwise.of_parameters(stage, layouts, several, work.precision)
    passes = passes_of(work, layouts, parameters)
    block = _block(work, layouts, stage, passes, room)
    ends = _ends(work, layouts, stage, parameters)

    items = micro_batches * layouts.interleave
    blocks = items * stage.blocks / layouts.interleave  # of all items
    computed = blocks * block.computed + items * ends.computed
    products = blocks * passes.products + items * ends.products
    shards = blocks * block.shards + items * ends.shards
    context = blocks * block.ring + items * ends.ring
    stages = items * 2 * ends.hop
    exposed_s = blocks * (block.tensor + block.expert + block.host) + shards + context + stages
    bubble = (computed + exposed_s) * (layouts.pipe - 1) / items
    once = work.software.memory * bytes_s(parameters.step, work.chip)
    optimizer = _update_s(work, layouts, stage, several)
    straggling = computed + once + bubble + optimizer
    times = Times(
        compute=products,
        memory_bound=computed - products + once,
        optimizer=optimizer,
        other=work.software.step_s + blocks * block.host,
        tensor=blocks * block.tensor,
        context=context,
        expert=blocks * block.expert,
        shards=shards,
        gradients=exposed.gradients_s(stage, layouts, several, passes.backward, room, timed),
        stages=stages,
        bubble=bubble,
        stragglers=slowest_share(layouts, work.cluster) * straggling,
    )
    return times, needed


def _block(
    work: Work, layouts: Layouts, stage: StageParameters, passes: XlaPasses, room: Bools
) -> _Block:
    """Seconds of one block and micro-batch, with its collectives.

    Args:
        work: the step.
        layouts: the layouts.
        stage: parameters of a stage.
        passes: compute of the block on a device alone.
        room: whether the scheduler has memory left.
    """
    timed = partial(group_s, cluster=work.cluster)
    collectives_s = communication.of_block(work, layouts, traits(), timed)
    hidden = overlap_s(layouts, work.chip, passes.forward, passes.backward, room)
    of_parameters = exposed.sharded_s(stage, layouts, work, timed)
    pairs = list(zip(of_parameters, hidden, strict=True))
    shards: Floats = np.sum([np.maximum(0.0, sent_s - s) for sent_s, s in pairs], axis=0)
    overlapped: Floats = np.sum([np.minimum(sent_s, s) for sent_s, s in pairs], axis=0)
    slowdown = OVERLAP_SLOWDOWN[work.chip.platform]
    busy = (passes.forward + collectives_s.tensor[0], passes.backward + collectives_s.tensor[1])
    kernels = [np.full(len(layouts), count) for count in xla_figures().kernels.memory_bound]
    host = host_exposed_s(kernels, busy, layouts, work.software)
    return _Block(
        computed=passes.forward + passes.backward + slowdown / (1 + slowdown) * overlapped,
        tensor=exposed.tensor_s(collectives_s, layouts, room),
        expert=_exchanged_s(collectives_s, layouts),
        shards=shards,
        ring=exposed.context_s(collectives_s, stage, layouts, passes.ring, room, timed),
        host=host + exposed.offloaded_s(work, layouts),
    )


def _ends(
    work: Work,
    layouts: Layouts,
    stage: StageParameters,
    parameters: elementwise.ParameterBytes,
) -> _Ends:
    """Seconds of one micro-batch outside of blocks, with its collectives."""
    timed = partial(group_s, cluster=work.cluster)
    shard, which = Shard.distinct(layouts, work.seq)
    outside = outside_blocks_of(work, shard, which, traits())
    of_shards, of_ring = exposed.tables_s(work.model, stage, layouts, timed)
    memory_s = work.software.memory * bytes_s(parameters.ends, work.chip)
    return _Ends(
        computed=outside.head + outside.table + memory_s,
        products=outside.products,
        shards=of_shards,
        ring=of_ring,
        hop=_hop_s(work, layouts, timed),
    )


def _update_s(work: Work, layouts: Layouts, stage: StageParameters, several: Bools) -> Floats:
    """Seconds of the optimizer's update, [N]."""
    one, many = xla_figures().parameters.updated
    updated = np.where(several, many, one) * weights.share(stage.parts, layouts, "optimizer")
    return work.software.memory * bytes_s(updated, work.chip)


def _exchanged_s(collectives_s: BlockCollectiveTimes, layouts: Layouts) -> Floats:
    """Seconds of exchanging tokens, once more where they are not saved, [N]."""
    saves: Bools = np.isin(layouts.remat, WITHOUT_REMAT)
    forward, backward, _ = collectives_s.expert
    return forward + backward + np.where(saves, 0.0, forward)


def _hop_s(work: Work, layouts: Layouts, timed: Timed) -> Floats:
    """Seconds of sending the stream of a micro-batch from stage to stage, [N]."""
    tokens = layouts.micro_batch * work.seq / layouts.context
    ways = np.where(layouts.sequence_parallel, layouts.tensor, 1)
    apart = layouts.devices // layouts.pipe
    sent = ELEMENT * tokens * work.model.width / ways
    return timed("collective-permute", sent, layouts.pipe, apart)
