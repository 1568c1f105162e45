"""Time of one training step in every layout: blocks, stages, and what waits for what."""

from functools import partial

import numpy as np

from exajax.machine.cluster import Cluster
from exajax.models.dimensions import ModelConfig
from exajax.simulate.formulas import communication
from exajax.simulate.formulas.blocks import ELEMENT, Shard
from exajax.simulate.formulas.breakdown import Times, slowest_share
from exajax.simulate.formulas.collectives import group_s
from exajax.simulate.formulas.kernels import bytes_s
from exajax.simulate.formulas.layouts import Floats, Layouts
from exajax.simulate.formulas.micro_batch import Turn, ends_of, sum_of_waits, turn_of, work_of
from exajax.simulate.formulas.xla import step

UPDATE_BYTES = 34.0
"""Bytes read and written for each parameter that a device updates, counted by hand: gradient
(twice, its norm comes first), and parameter, mean and square read and written in fp32; the bf16
copy written."""


def times(
    model: ModelConfig,
    cluster: Cluster,
    layouts: Layouts,
    *,
    global_batch: int,
    seq: int,
    precision: str,
) -> Times:
    """Returns the time of a step in every layout, each as if it stood alone.

    The stages of a pipeline work on one micro-batch after the other, and wait for the slowest of
    them. Before it is busy, and behind, it waits for what the others do for one micro-batch, less
    where each holds several parts of the layers (arXiv:2104.04473, section 2.2).

    Args:
        model: its dimensions.
        cluster: where, and with which software profile.
        layouts: ways to lay it over devices.
        global_batch: sequences of a step.
        seq: tokens of each.
        precision: what the passes compute in.
    """
    if cluster.software.program == "jax":
        return step.times(
            model, cluster, layouts, global_batch=global_batch, seq=seq, precision=precision
        )
    timed = partial(group_s, cluster=cluster)
    shard, which = Shard.distinct(layouts, seq)
    work = work_of(model, cluster, layouts, shard, which, precision)
    sent = communication.of_block(model, layouts, seq, cluster.software, timed)
    turn = turn_of(work, sent, layouts, cluster)
    ends = ends_of(model, shard, cluster, precision, which)

    micro_batches, alone = layouts.micro_batches(global_batch), layouts.pipe == 1
    deepest = np.ceil(model.layers / layouts.pipe)
    at_ends = np.where(alone, ends.head + ends.table, np.maximum(ends.head, ends.table))
    slowest = deepest * turn.total + at_ends
    others = model.layers * turn.total + ends.head + ends.table - slowest
    bubble = np.where(alone, 0.0, others / layouts.interleave)
    blocks = micro_batches * deepest
    computing = blocks * turn.compute + micro_batches * at_ends
    products = blocks * turn.products + micro_batches * ends.products

    # Of two tables a stage has one; where there is one, both ends have it.
    held = np.where(alone | (model.family == "gpt"), 1.0, 0.5)
    parameters = deepest * communication.block_parameters(model, layouts) + (
        communication.end_parameters(model) / layouts.tensor * held
    )
    update_s = cluster.software.memory * bytes_s(
        UPDATE_BYTES * parameters / layouts.state_shards, cluster.chip
    )
    share = slowest_share(layouts, cluster)
    return Times(
        compute=products,
        memory_bound=computing - products,
        optimizer=update_s,
        other=blocks * turn.host + cluster.software.step_s,
        tensor=blocks * turn.tensor,
        context=blocks * turn.context,
        expert=blocks * turn.expert,
        shards=blocks * turn.shards,
        gradients=_gradients(model, layouts, parameters, deepest, turn, cluster, timed),
        stages=_stages(model, layouts, seq, micro_batches, cluster),
        bubble=bubble,
        stragglers=share * (computing + blocks * turn.host + bubble + update_s),
    )


def _gradients(
    model: ModelConfig,
    layouts: Layouts,
    parameters: Floats,
    deepest: Floats,
    turn: Turn,
    cluster: Cluster,
    timed: communication.Timed,
) -> Floats:
    """Returns the seconds in which replicas wait for each other's gradients and updates.

    Gradients are on their way while the last micro-batch goes back through the other blocks,
    updated parameters while the first one goes ahead, as far as nothing else is.
    """
    software = cluster.software
    reduced, updated = communication.of_gradients(layouts, parameters, software, timed)
    ahead, back = turn.free
    behind = (deepest - 1) * back * software.hides("gradients")
    before = deepest * ahead * software.hides("parameters")
    waits = sum_of_waits(((reduced, behind), (updated, before)))
    if model.family != "gpt":
        return waits
    table = model.width * model.padded_vocab / layouts.tensor * software.gradient_bytes
    apart = layouts.devices // layouts.pipe * (layouts.pipe - 1)
    return waits + timed("all-reduce", table, np.minimum(layouts.pipe, 2), apart)


def _stages(
    model: ModelConfig, layouts: Layouts, seq: int, m: np.ndarray, cluster: Cluster
) -> Floats:
    """Returns the seconds in which stages wait for what is on its way between them."""
    tokens = layouts.micro_batch * seq / layouts.context
    sent = tokens * model.width * ELEMENT / layouts.tensor
    apart = layouts.devices // layouts.pipe
    hop = group_s("collective-permute", sent, layouts.pipe, apart, cluster)
    whole = group_s("all-gather", sent * layouts.tensor, layouts.tensor, 1, cluster)
    hop = hop + np.where(layouts.sequence_parallel | (layouts.pipe == 1), 0.0, whole)
    shown = 0 if cluster.software.hides("stages") else 1
    return 2 * hop * (shown * m * layouts.interleave + layouts.pipe - 1)
