"""Time of a step of our own program, as XLA compiles it, in every layout."""

from dataclasses import dataclass
from functools import partial

import numpy as np

from exajax.cluster import Cluster
from exajax.models.presets import ModelConfig
from exajax.recipe import REMATS
from exajax.simulate.analytic import beside, communication, moved, weights
from exajax.simulate.analytic.blocks import ELEMENT, REMADE, Shard, block
from exajax.simulate.analytic.collectives import group_s
from exajax.simulate.analytic.footprint import footprint
from exajax.simulate.analytic.kernels import bytes_s
from exajax.simulate.analytic.layouts import Bools, Floats, Layouts
from exajax.simulate.analytic.spent import Times, slowest_share
from exajax.simulate.analytic.turn import ends_of
from exajax.simulate.timeline import OVERLAP_SLOWDOWN

KERNELS = (30.0, 42.0)
"""Kernels of a block that wait for memory, ahead and back, counted in compiled programs."""

UPDATE_BYTES = (28.0, 32.0)
"""Bytes read and written for each parameter that a device updates: gradient in bf16, or in fp32
where it is a sum over micro-batches (twice, its norm comes first); parameter, mean and square read
and written in fp32."""

BETWEEN_STEPS = {"reduced": 0.75, "updated": 0.67}
"""Share that is waited for of the gradients that are added up behind the last micro-batch, and of
the updated parameters that are gathered, which other parameters' updates are beside."""


RING = 0.3
"""Share that is waited for of keys and values on their way around a ring."""

SCORES = (4.0, 7.0)
"""Bytes of a score that is not fused in fp32, over those of bf16, in the products that write and
read it: ahead, which is made again, and back."""

CASTS = (3.0, 6.0)
"""Bytes of casting a number to fp8: read in bf16 and written in 8 bits; of a gradient read once
more before, for the largest of all, and written once more, turned."""

OFFLOADED = 0.8
"""Share that is waited for of copies to and from the host."""


@dataclass(frozen=True)
class Passes:
    """Seconds of a block and a micro-batch on a device alone, of shape [N] each.

    Attributes:
        ahead: of the forward pass.
        back: of the backward pass, with what it makes again.
        products: of both, matrix products and attention.
    """

    ahead: Floats
    back: Floats
    products: Floats


def passes_of(
    model: ModelConfig,
    cluster: Cluster,
    layouts: Layouts,
    seq: int,
    precision: str,
    parameters: moved.OfParameters,
) -> Passes:
    """Returns what a device does for a block and a micro-batch."""
    chip, stack = cluster.chip, cluster.stack
    shard, which = Shard.distinct(layouts, seq)
    one = block(model, shard, chip, precision, stack)
    ahead, back = (
        np.sum([pair[side] for pair in one.products_s.values()], axis=0)[which] for side in (0, 1)
    )
    for index in np.unique(layouts.remat):
        for tensor in (False, True):
            chosen = (layouts.remat == index) & ((layouts.tensor > 1) == tensor)
            parts = remade(REMATS[index], tensor)
            for part in parts:
                if part in one.products_s:
                    back = back + np.where(chosen, one.products_s[part][0][which], 0.0)
    scores = _scores(model, layouts, seq)
    ahead = ahead + bytes_s(SCORES[0] * scores, chip)
    made_again = np.where(_keeps_all(layouts), 0.0, SCORES[0])
    back = back + bytes_s((SCORES[1] + made_again) * scores, chip)
    bytes_ = moved.of_block(model, layouts, seq, stack, chip)
    if precision == "fp8":
        bytes_ = _with_casts(model, layouts, seq, bytes_)
    waits = [
        stack.memory * (bytes_s(bytes_[side] + parameters.block[side], chip) + n * chip.launch_s)
        for side, n in enumerate(KERNELS)
    ]
    return Passes(ahead + waits[0], back + waits[1], ahead + back)


def remade(remat: str, tensor: bool) -> tuple[str, ...]:
    """Returns the parts of a block that the backward pass makes again.

    Policies keep results of products of two matrices; those of experts are of three dimensions. No
    gradient needs what the last product makes, but XLA leaves it out only where its result is not
    added up over devices.
    """
    if remat in ("none", "attention"):
        return REMADE[remat]
    left_out = ("experts",) if tensor else ("down", "experts")
    return (*(part for part in REMADE[remat] if part not in left_out), "experts")


def times(
    model: ModelConfig,
    cluster: Cluster,
    layouts: Layouts,
    *,
    global_batch: int,
    seq: int,
    precision: str,
) -> Times:
    """Returns the time of a step in every layout; arguments as `engine.times`'s."""
    chip, stack = cluster.chip, cluster.stack
    timed = partial(group_s, cluster=cluster)
    how = {"global_batch": global_batch, "seq": seq, "precision": precision}
    needed = footprint(model, stack, layouts, **how).total
    room = needed <= beside.ROOM * chip.memory_bytes
    micro_batches, piped = layouts.micro_batches(global_batch), layouts.pipe > 1
    parameters = moved.of_parameters(model, layouts, micro_batches, precision)
    passes = passes_of(model, cluster, layouts, seq, precision, parameters)
    sent = communication.of_block(model, layouts, seq, stack, timed)
    shard, which = Shard.distinct(layouts, seq)
    ends = ends_of(model, shard, cluster, precision, which)

    deepest = np.ceil(model.layers / layouts.pipe)
    # All stages take every turn, and what only the first and the last have to do is in it.
    items = micro_batches * layouts.interleave
    turns = items + layouts.pipe - 1
    blocks = deepest / layouts.interleave
    at_ends = ends.head + ends.table + stack.memory * bytes_s(parameters.ends, chip)

    hidden = beside.seconds(layouts, chip, passes.ahead, passes.back, room)
    shard_sent = _sharded(model, layouts, cluster, timed)
    shards = sum(np.maximum(0.0, s - h) for s, h in zip(shard_sent, hidden, strict=True))
    overlapped = sum(np.minimum(s, h) for s, h in zip(shard_sent, hidden, strict=True))
    tensor = _tensor(sent, layouts, room)
    expert = sent.expert[0] + sent.expert[1]
    expert = expert + np.where(_keeps_all(layouts), 0.0, sent.expert[0])
    ring = RING * np.sum(sent.context, axis=0)

    slowdown = OVERLAP_SLOWDOWN[chip.platform]
    slowed = slowdown / (1 + slowdown) * overlapped
    compute = passes.ahead + passes.back + slowed
    reduced_in_blocks, reduced, updated = _gradients(
        model, layouts, cluster, micro_batches, passes, room, timed
    )
    host = _offloaded_s(model, layouts, seq, cluster)
    wait = tensor + expert + ring + shards + host
    tokens = layouts.micro_batch * seq / layouts.context
    sent_on = (
        ELEMENT * tokens * model.width / np.where(layouts.sequence_parallel, layouts.tensor, 1)
    )
    apart = layouts.devices // layouts.pipe
    hop = timed("collective-permute", sent_on, np.minimum(layouts.pipe, 2), apart)
    item = blocks * (compute + wait) + at_ends + 2 * hop
    computing = items * (blocks * compute + at_ends)
    products = items * (blocks * (passes.products + slowed) + ends.products)
    held = weights.of_stage(model, layouts)
    update = np.where((micro_batches > 1) | piped, UPDATE_BYTES[1], UPDATE_BYTES[0])
    optimizer = stack.memory * bytes_s(update * weights.share(held, layouts, "optimizer"), chip)
    once = stack.memory * bytes_s(parameters.step, chip)
    bubble = (turns - items) * item
    share = slowest_share(layouts, cluster)
    return Times(
        compute=products,
        memory_bound=computing - products + once,
        optimizer=optimizer,
        other=stack.step_s + items * blocks * host,
        tensor=items * blocks * tensor,
        context=items * blocks * ring,
        expert=items * blocks * expert,
        shards=items * blocks * shards,
        gradients=reduced_in_blocks + reduced + updated,
        stages=items * 2 * hop,
        bubble=bubble,
        stragglers=share * (computing + once + bubble + optimizer),
    )


def _tensor(sent: communication.Sent, layouts: Layouts, room: Bools) -> Floats:
    """Returns the seconds in which a block waits for tensor-parallel sublayers.

    What gradients of weights need gathered once more, and what is made again, is beside compute
    where there is room; more is where no parameters are gathered. A stage of a pipeline gathers
    once for each of the products that read the same.
    """
    ahead, back, again = sent.tensor
    whole = (layouts.weight_shards == 1) & (layouts.zero < 2)
    piped = layouts.pipe > 1
    apart = piped & layouts.sequence_parallel
    with_room = np.select([apart, whole], [2.5 * ahead + 0.5 * again, 1.0 * ahead], 1.85 * ahead)
    return np.where(room, with_room, ahead * np.where(apart, 1.5, 1.0) + back + again)


def _sharded(
    model: ModelConfig, layouts: Layouts, cluster: Cluster, timed: communication.Timed
) -> tuple[Floats, Floats, Floats]:
    """Returns the seconds of gathering a block's parameters, ahead and back, and of scattering.

    Parameters of experts are divided over fewer devices than others. What no axis divides is not
    gathered, and its gradients are added up in whole. A backward pass that makes everything again
    gathers most matrices once for that and once for their gradients' products.
    """
    deepest = np.ceil(model.layers / layouts.pipe)
    inner = layouts.context * layouts.tensor
    gathered, scattered = np.zeros(len(layouts)), np.zeros(len(layouts))
    for part in weights.of_stage(model, layouts)[:2]:
        size = 2.0 * part.count / deepest
        mine = part.share(layouts, "parameters", flat=False)
        ways = np.round(part.count / np.maximum(mine, 1))
        expert = 1 if part.expert else layouts.expert
        stride = inner * np.where(part.expert, layouts.expert, 1)
        wanted = layouts.fsdp * expert * np.where(layouts.zero >= 3, layouts.data, 1)
        gathered += timed("all-gather", size, ways, stride)
        scattered += timed("reduce-scatter", size, ways, stride)
        scattered += timed("all-reduce", size, np.where(ways == 1, wanted, 1), stride)
    shards = cluster.stack.shards
    twice = (layouts.remat == REMATS.index("full")) & (layouts.tensor > 1)
    again = np.where(twice, 1.7, 1.0)
    return shards * gathered, shards * again * gathered, shards * scattered


def _keeps_all(layouts: Layouts) -> Bools:
    return np.isin(layouts.remat, [REMATS.index("none"), REMATS.index("attention")])


def _scores(model: ModelConfig, layouts: Layouts, seq: int) -> Floats:
    """Returns the scores of attention that is not fused, [N]; a ring leaves out what is masked."""
    tokens, ways = layouts.micro_batch * seq / layouts.context, layouts.context
    computed = np.where(ways > 1, 0.0, 1.0)
    return np.where(layouts.flash, 0.0, computed * tokens * seq * model.heads / layouts.tensor)


def _with_casts(
    model: ModelConfig, layouts: Layouts, seq: int, bytes_: tuple[Floats, Floats]
) -> tuple[Floats, Floats]:
    """Adds what casts to fp8 move of factors of products: activations, gradients, parameters."""
    T, t = layouts.micro_batch * seq / layouts.context, layouts.tensor
    D, F, H = model.width, model.ffn / t, model.heads * model.head_dim / t
    gates = 2 if model.family in ("llama", "mixtral") else 1
    kv = 2 * model.kv_heads * model.head_dim / t
    weights_ = communication.block_parameters(model, layouts)
    ahead = CASTS[0] * (T * (2 * D + H + F) + weights_)
    back = CASTS[1] * T * (H + kv + 2 * D + gates * F) + CASTS[0] * weights_
    return bytes_[0] + ahead, bytes_[1] + back


def _offloaded_s(model: ModelConfig, layouts: Layouts, seq: int, cluster: Cluster) -> Floats:
    """Returns the seconds of waiting for a block's products on their way to the host and back."""
    T, t = layouts.micro_batch * seq / layouts.context, layouts.tensor
    gates = 2 if model.family in ("llama", "mixtral") else 1
    numbers = (model.heads + 2 * model.kv_heads) * model.head_dim + gates * model.ffn
    sent = 2 * T * (numbers / t + model.width / np.where(layouts.sequence_parallel, t, 1))
    offloads = layouts.remat == REMATS.index("offload")
    return np.where(offloads, OFFLOADED * 2 * sent / cluster.chip.host_bandwidth, 0.0)


def _gradients(model, layouts, cluster, micro_batches, passes, room, timed):
    """Returns the seconds of waiting for replicas: in blocks, behind them, and for updates."""
    held = weights.of_stage(model, layouts)
    mine = weights.share(held, layouts, "parameters")
    deepest = np.ceil(model.layers / layouts.pipe)
    ways = np.where(layouts.zero < 3, layouts.data, 1)
    stride = layouts.devices // (layouts.data * layouts.pipe)
    once = (micro_batches > 1) | (layouts.pipe > 1)
    scatters = layouts.zero == 2
    size = np.where(once, 4.0, 2.0) * mine / np.where(once, 1, deepest)
    all_ = timed("all-reduce", size, np.where(scatters, 1, ways), stride)
    part = timed("reduce-scatter", size, np.where(scatters, ways, 1), stride)
    sum_ = all_ + part
    hidden = np.where(room, 0.3 * passes.back, 0.0)
    in_blocks = np.where(once, 0.0, deepest * np.maximum(0.0, sum_ - hidden))
    alone = ~room | (layouts.pipe > 1)
    reduced = np.where(once, np.where(alone, 0.95, BETWEEN_STEPS["reduced"]) * sum_, 0.0)
    divided = (layouts.zero == 1) | (layouts.zero == 2)
    gathered = timed("all-gather", 4.0 * mine, np.where(divided, ways, 1), stride)
    updated = np.where(alone, 0.95, BETWEEN_STEPS["updated"]) * gathered
    return in_blocks, reduced, updated
