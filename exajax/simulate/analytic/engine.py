"""Time of one training step in every layout: blocks, stages, and what waits for what."""

import dataclasses
from dataclasses import dataclass
from functools import partial
from statistics import NormalDist

import numpy as np

from exajax.cluster import Cluster
from exajax.models.presets import ModelConfig
from exajax.simulate.analytic import communication
from exajax.simulate.analytic.blocks import ELEMENT, Shard
from exajax.simulate.analytic.collectives import group_s
from exajax.simulate.analytic.kernels import bytes_s
from exajax.simulate.analytic.layouts import Floats, Layouts
from exajax.simulate.analytic.turn import Turn, ends_of, sum_of_waits, turn_of, work_of

UPDATE_BYTES = 34.0
"""Bytes read and written for each parameter that a device updates, counted by hand: gradient
(twice, its norm comes first), and parameter, mean and square read and written in fp32; the bf16
copy written."""


@dataclass(frozen=True)
class Times:
    """Where the seconds of a step go in every layout; all of shape [N] and counted once.

    Attributes:
        compute: matrix products and attention.
        memory_bound: operations that wait for memory.
        optimizer: the update.
        other: waiting for the host, which starts steps and kernels.
        tensor: waiting for tensor-parallel sublayers to add up.
        context: waiting for keys and values.
        expert: waiting for tokens on their way to experts and back.
        shards: waiting for parameters that are gathered and gradients that are scattered.
        gradients: waiting for replicas to add up gradients and gather what was updated.
        stages: waiting for the stage before or behind.
        bubble: stages that have nothing to do.
        stragglers: waiting for the slowest of all devices.
    """

    compute: Floats
    memory_bound: Floats
    optimizer: Floats
    other: Floats
    tensor: Floats
    context: Floats
    expert: Floats
    shards: Floats
    gradients: Floats
    stages: Floats
    bubble: Floats
    stragglers: Floats

    @property
    def step_s(self) -> Floats:
        """Seconds of the median step."""
        total: Floats = sum(getattr(self, field.name) for field in dataclasses.fields(self))
        return total


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
        cluster: where, and with which software stack.
        layouts: ways to lay it over devices.
        global_batch: sequences of a step.
        seq: tokens of each.
        precision: what the passes compute in.
    """
    timed = partial(group_s, cluster=cluster)
    shard, which = Shard.distinct(layouts, seq)
    work = work_of(model, cluster, layouts, shard, which, precision)
    sent = communication.of_block(model, layouts, seq, cluster.stack, timed)
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
    update_s = cluster.stack.memory * bytes_s(
        UPDATE_BYTES * parameters / layouts.state_shards, cluster.chip
    )
    share = _slowest(layouts, cluster)
    return Times(
        compute=products,
        memory_bound=computing - products,
        optimizer=update_s,
        other=blocks * turn.host + cluster.stack.step_s,
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
    stack = cluster.stack
    reduced, updated = communication.of_gradients(layouts, parameters, stack, timed)
    ahead, back = turn.free
    behind = (deepest - 1) * back * stack.hides("gradients")
    before = deepest * ahead * stack.hides("parameters")
    waits = sum_of_waits(((reduced, behind), (updated, before)))
    if model.family != "gpt":
        return waits
    table = model.width * model.padded_vocab / layouts.tensor * stack.gradient_bytes
    apart = layouts.devices // layouts.pipe * (layouts.pipe - 1)
    return waits + timed("all-reduce", table, np.minimum(layouts.pipe, 2), apart)


def _stages(
    model: ModelConfig, layouts: Layouts, seq: int, m: np.ndarray, cluster: Cluster
) -> Floats:
    """Returns the seconds in which stages wait for what is on its way between them."""
    tokens = layouts.micro_batch * seq / layouts.context
    sent = tokens * model.width * ELEMENT / layouts.tensor
    apart = layouts.devices // layouts.pipe
    hop = group_s("collective-permute", sent, np.minimum(layouts.pipe, 2), apart, cluster)
    whole = group_s("all-gather", sent * layouts.tensor, layouts.tensor, 1, cluster)
    hop = hop + np.where(layouts.sequence_parallel | (layouts.pipe == 1), 0.0, whole)
    shown = 0 if cluster.stack.hides("stages") else 1
    return 2 * hop * (shown * m * layouts.interleave + layouts.pipe - 1)


def _slowest(layouts: Layouts, cluster: Cluster) -> Floats:
    """Returns how much longer the slowest of all devices takes in the median step, as a share.

    The largest of N log-normal factors is at most its quantile U^(1/N) with probability U.
    """
    counts, which = np.unique(layouts.devices, return_inverse=True)
    sigma = cluster.variability.compute
    shares = [np.expm1(sigma * NormalDist().inv_cdf(0.5 ** (1 / n))) for n in counts]
    return np.array(shares)[which.reshape(-1)]
