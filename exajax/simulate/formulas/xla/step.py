"""Time of a step of our own program, as XLA compiles it, in every layout."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from exajax.machine.chip import Chip
from exajax.machine.cluster import Cluster
from exajax.models.dimensions import ModelConfig
from exajax.recipe.recipe import REMATS
from exajax.simulate.formulas import communication, weights
from exajax.simulate.formulas.blocks import ELEMENT, REMADE, Shard, block
from exajax.simulate.formulas.breakdown import Times, slowest_share
from exajax.simulate.formulas.collectives import group_s
from exajax.simulate.formulas.footprint import footprint, has_room
from exajax.simulate.formulas.kernels import Product, bytes_s, product_s
from exajax.simulate.formulas.layouts import Bools, Floats, Layouts
from exajax.simulate.formulas.micro_batch import ends_of, waiting_for_host
from exajax.simulate.formulas.xla import elementwise, exposed, overlap
from exajax.simulate.timeline import OVERLAP_SLOWDOWN

KERNELS = (30.0, 42.0)
"""Kernels of a block that wait for memory, ahead and back, counted in compiled programs."""

RING_KERNELS = (22.0, 43.0)
"""More of them in every step of a ring but the first, counted in llama3-8b with two and eight ways
of `context`: 37 and 170 for attention forward, 80 and 337 backward with what is recomputed."""

RING_SCORE_BYTES = 4.0
"""Of a score that the products of a ring write and read: they are in fp32."""

UPDATE_BYTES = (28.0, 32.0)
"""Bytes read and written for each parameter that a device updates: gradient in bf16, or in fp32
where it is a sum over micro-batches (twice, its norm comes first); parameter, mean and square read
and written in fp32."""


@dataclass(frozen=True)
class Passes:
    """Seconds of a block and a micro-batch on a device alone, of shape [N] each.

    Attributes:
        ahead: of the forward pass.
        back: of the backward pass, with what it makes again.
        products: of both, matrix products and attention.
        ring: of both, attention in a ring, its products and what it moves; 0 without one.
    """

    ahead: Floats
    back: Floats
    products: Floats
    ring: Floats


def passes_of(
    model: ModelConfig,
    cluster: Cluster,
    layouts: Layouts,
    seq: int,
    precision: str,
    parameters: elementwise.OfParameters,
) -> Passes:
    """Returns what a device does for a block and a micro-batch."""
    chip, software = cluster.chip, cluster.software
    shard, which = Shard.distinct(layouts, seq)
    parts = block(model, shard, chip, precision, software).products_s
    ring = layouts.context > 1
    scores = np.where(ring, 0.0, elementwise.scores(model, layouts, seq))
    ring_s = [software.matmul * s[which] for s in ring_products_s(model, shard, chip, precision)]

    def products(part: str, side: int) -> Floats:
        seconds = parts[part][side][which]
        if part != "attention":
            return seconds
        unfused = seconds + bytes_s(elementwise.SCORES[side] * scores, chip)
        return np.where(ring, ring_s[side], unfused)

    ahead, back = (np.sum([products(part, side) for part in parts], axis=0) for side in (0, 1))
    for index in np.unique(layouts.remat):
        for tensor in (False, True):
            chosen = (layouts.remat == index) & ((layouts.tensor > 1) == tensor)
            for part in remade(REMATS[index], tensor):
                if part in parts and chosen.any():
                    back = back + np.where(chosen, products(part, 0), 0.0)
    bytes_ = elementwise.of_block(model, layouts, seq, precision, cluster)
    memory_s = [
        software.memory
        * (
            bytes_s(bytes_[side] + parameters.block[side], chip)
            + (KERNELS[side] + RING_KERNELS[side] * (layouts.context - 1)) * chip.launch_s
        )
        for side in (0, 1)
    ]
    moved_s = bytes_s(np.sum(elementwise.of_ring(model, layouts, seq), axis=0), chip)
    attention = np.where(ring, ring_s[0] + ring_s[1] + software.memory * moved_s, 0.0)
    return Passes(ahead + memory_s[0], back + memory_s[1], ahead + back, attention)


def ring_products_s(
    model: ModelConfig, shard: Shard, chip: Chip, precision: str
) -> tuple[Floats, Floats]:
    """Returns the seconds of the products of attention in a ring, forward and backward, [U].

    They are done for one pair of chunks after the other. Backward the scores are made again; those
    of a device's own chunks are there where they have been recomputed already.
    """
    chunk = shard.queries / 2
    count, head = shard.sequences * model.heads / shard.tensor, 0 * chunk + model.head_dim
    scores = Product(count, chunk, chunk, head, weight=False)
    mix = Product(count, chunk, head, chunk, weight=False)
    gradients = [*scores.backward(), *mix.backward()]
    pairs = 2 * shard.context + 1
    there = 3 + 2 * (shard.context == 2)

    def seconds(products: Sequence[Product]) -> Floats:
        return product_s(products, chip, precision, RING_SCORE_BYTES)

    forward = pairs * seconds([scores, mix])
    return forward, pairs * seconds(gradients) + (pairs - there) * seconds([scores])


def remade(remat: str, tensor: bool) -> tuple[str, ...]:
    """Returns the parts of a block that the backward pass makes again.

    Policies keep results of products of two matrices; those of experts are of three dimensions. No
    gradient needs what the last product makes, but XLA leaves it out only where its result is not
    added up over devices.
    """
    if remat in KEEPS_ALL:
        return REMADE[remat]
    left_out = ("experts",) if tensor else ("down", "experts")
    return (*(part for part in REMADE[remat] if part not in left_out), "experts")


KEEPS_ALL = ("none", "attention")
"""Policies that keep what experts make."""


def times(
    model: ModelConfig,
    cluster: Cluster,
    layouts: Layouts,
    *,
    global_batch: int,
    seq: int,
    precision: str,
) -> Times:
    """Returns the time of a step in every layout; arguments as `engine.times`'s.

    All stages of a pipeline take every turn of it, and what only the first and the last have to do
    is a part of each (`exajax.spmd.pipeline`).
    """
    chip, software = cluster.chip, cluster.software
    timed = partial(group_s, cluster=cluster)
    needed = footprint(
        model, software, layouts, chip, global_batch=global_batch, seq=seq, precision=precision
    )
    room = has_room(needed, chip)
    micro_batches = layouts.micro_batches(global_batch)
    several = (micro_batches > 1) | (layouts.pipe > 1)
    held = exposed.Held.of(model, layouts)
    parameters = elementwise.of_parameters(held, layouts, several, precision)
    passes = passes_of(model, cluster, layouts, seq, precision, parameters)
    sent = communication.of_block(model, layouts, seq, software, timed)
    shard, which = Shard.distinct(layouts, seq)
    ends = ends_of(model, shard, cluster, precision, which)
    tables = exposed.tables_s(model, held, layouts, timed)
    at_ends = ends.head + ends.table + software.memory * bytes_s(parameters.ends, chip)

    hidden = overlap.seconds(layouts, chip, passes.ahead, passes.back, room)
    of_blocks = exposed.sharded_s(held, layouts, cluster, timed)
    pairs = list(zip(of_blocks, hidden, strict=True))
    shards: Floats = np.sum([np.maximum(0.0, sent_s - s) for sent_s, s in pairs], axis=0)
    overlapped: Floats = np.sum([np.minimum(sent_s, s) for sent_s, s in pairs], axis=0)
    slowdown = OVERLAP_SLOWDOWN[chip.platform]
    computing = passes.ahead + passes.back + slowdown / (1 + slowdown) * overlapped
    tensor = exposed.tensor_s(sent, layouts, room)
    expert = _expert(sent, layouts)
    ring = exposed.context_s(sent, held, layouts, passes.ring, room, timed)
    busy = (passes.ahead + sent.tensor[0], passes.back + sent.tensor[1])
    kernels = [np.full(len(layouts), count) for count in KERNELS]
    host = waiting_for_host(kernels, busy, layouts, software)
    host = host + exposed.offloaded_s(model, layouts, seq, cluster)
    hop = _hop(model, layouts, seq, timed)

    items = micro_batches * layouts.interleave
    blocks = items * held.deepest / layouts.interleave  # of all items
    computed = blocks * computing + items * at_ends
    sharded = blocks * shards + items * tables[0]
    context = blocks * ring + items * tables[1]
    waited = blocks * (tensor + expert + host) + sharded + context + items * 2 * hop
    bubble = (computed + waited) * (layouts.pipe - 1) / items
    products = blocks * passes.products + items * ends.products
    once = software.memory * bytes_s(parameters.step, chip)
    update = np.where(several, UPDATE_BYTES[1], UPDATE_BYTES[0])
    updated = update * weights.share(held.parts, layouts, "optimizer")
    optimizer = software.memory * bytes_s(updated, chip)
    return Times(
        compute=products,
        memory_bound=computed - products + once,
        optimizer=optimizer,
        other=software.step_s + blocks * host,
        tensor=blocks * tensor,
        context=context,
        expert=blocks * expert,
        shards=sharded,
        gradients=exposed.gradients_s(held, layouts, several, passes.back, room, timed),
        stages=items * 2 * hop,
        bubble=bubble,
        stragglers=slowest_share(layouts, cluster) * (computed + once + bubble + optimizer),
    )


def _expert(sent: communication.Sent, layouts: Layouts) -> Floats:
    """Returns the seconds of exchanging tokens, once more where they are not kept."""
    keeps: Bools = np.isin(layouts.remat, [REMATS.index(remat) for remat in KEEPS_ALL])
    return sent.expert[0] + sent.expert[1] + np.where(keeps, 0.0, sent.expert[0])


def _hop(model: ModelConfig, layouts: Layouts, seq: int, timed: communication.Timed) -> Floats:
    """Returns the seconds of sending the stream of a micro-batch from stage to stage."""
    tokens = layouts.micro_batch * seq / layouts.context
    ways = np.where(layouts.sequence_parallel, layouts.tensor, 1)
    apart = layouts.devices // layouts.pipe
    sent = ELEMENT * tokens * model.width / ways
    return timed("collective-permute", sent, layouts.pipe, apart)
