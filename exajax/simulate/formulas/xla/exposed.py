"""What a device waits for in our own program, over arrays of layouts.

The shares were chosen by hand to agree with the programs marked `fitted` in
`benchmarks/engines.py`, which says how far they hold for others.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from exajax.machine.cluster import Cluster
from exajax.models.dimensions import ModelConfig
from exajax.recipe.recipe import REMATS
from exajax.simulate.formulas import communication, weights
from exajax.simulate.formulas.layouts import Bools, Floats, Layouts

RING = {True: (0.15, 0.5), False: (1.0, 1.0)}
"""Share that is waited for of keys and values on their way around a ring, and of gradients that its
devices add up, by whether the scheduler has memory left. With it, of llama3-8b with two and four
ways of `context`: 0 and 0.2, and 0 and 0.75; without, with eight, all of either."""

RING_PASSES = (1.0, 3.0)
"""What goes around a ring forward, over keys and values in bf16, and backward: the gradients of
both go with them in fp32, and one step further, home, in bf16. What recomputes attention is one
more forward. Counted in gpt2-124m with four ways of `context`; llama2-7b with four has an eighth
more."""

OFFLOADED = 0.8
"""Share that is waited for of copies to and from the host."""

IN_BLOCKS = 0.3
"""Share of a block's backward pass that gradients are beside where replicas add them up there."""

BETWEEN_STEPS = {"reduced": 0.75, "updated": 0.67, "alone": 0.95}
"""Share that is waited for of gradients that are added up behind the last micro-batch, and of
updated parameters that are gathered, which other parameters' updates are beside; and of either in
pipelines, or where the scheduler has no memory left."""

TWICE = 1.7
"""What is gathered in a tensor-parallel backward pass that makes everything again, over what one
pass needs: most matrices once for that and once for the products of their gradients."""


@dataclass(frozen=True)
class Held:
    """Parameters of the stage that has most of them, counted once for all who ask.

    Attributes:
        parts: as `weights.of_stage`.
        mine: of each part what a device keeps, shape [N].
        deepest: blocks of the stage.
    """

    parts: Sequence[weights.Weights]
    mine: Sequence[Floats]
    deepest: Floats

    @classmethod
    def of(cls, model: ModelConfig, layouts: Layouts) -> "Held":
        """Counts the parameters; of experts there may be none."""
        attention, experts, tables = weights.of_stage(model, layouts)
        parts = (attention, experts, tables) if model.mixture_layers else (attention, tables)
        mine = [part.share(layouts, "parameters", flat=False) for part in parts]
        return cls(parts, mine, np.ceil(model.layers / layouts.pipe))


def tensor_s(sent: communication.Sent, layouts: Layouts, room: Bools) -> Floats:
    """Returns the seconds in which a block waits for tensor-parallel sublayers.

    What gradients of weights need gathered once more, and what is made again, is beside compute
    where there is room, and so are parts of the rest: the shares are those of compiled programs.
    More is beside compute in small groups that gather no parameters. A stage of a pipeline gathers
    once for each of the products that read the same.
    """
    ahead, back, again = sent.tensor
    whole = (layouts.weight_shards == 1) & (layouts.zero < 2)
    apart = (layouts.pipe > 1) & layouts.sequence_parallel
    shares = np.select([apart, whole & (layouts.tensor < 8), whole], [2.5, 1.1, 1.75], 1.85)
    with_room = shares * ahead + np.where(apart, 0.5 * again, 0.0)
    without = np.where(apart, 4.75 * ahead + 1.25 * again, ahead + back + again)
    return np.where(room, with_room, without)


def context_s(
    sent: communication.Sent,
    held: "Held",
    layouts: Layouts,
    attention_s: Floats,
    room: Bools,
    timed: communication.Timed,
) -> Floats:
    """Returns the seconds in which a block waits for its ring.

    Keys and values go around; and gradients are added up, of which each device of the ring has
    those of its own tokens: what a device keeps of them, in bf16, in every micro-batch. Steps of a
    ring overlap with attention alone, so what takes longer is exposed however much room there is.

    Args:
        sent: collectives of a block.
        held: parameters.
        layouts: how.
        attention_s: seconds of a block's attention in a ring, forward and backward.
        room: whether the scheduler has memory left.
        timed: prices collectives.
    """
    keeps = layouts.remat == REMATS.index("none")
    passes = RING_PASSES[0] * np.where(keeps, 1, 2) + RING_PASSES[1]
    around = (passes + 1 / np.maximum(1, layouts.context - 1)) * sent.context[0]
    mine: Floats = 2.0 * np.sum(held.mine[:-1], axis=0) / held.deepest
    added = timed("all-reduce", mine, layouts.context, layouts.tensor)
    shares = np.where(room, np.array(RING[True])[:, None], np.array(RING[False])[:, None])
    exposed = np.maximum(shares[0] * around, around - attention_s)
    return exposed + np.where(around > attention_s, 1.0, shares[1]) * added


def sharded_s(
    held: Held, layouts: Layouts, cluster: Cluster, timed: communication.Timed
) -> tuple[Floats, Floats, Floats]:
    """Returns the seconds of gathering a block's parameters, ahead and back, and of scattering.

    Parameters of experts are divided over fewer devices than others. What no axis divides is not
    gathered, and its gradients are added up in whole.
    """
    inner = layouts.context * layouts.tensor
    gathered, scattered = np.zeros(len(layouts)), np.zeros(len(layouts))
    for part, mine in zip(held.parts[:-1], held.mine[:-1], strict=True):
        size = 2.0 * part.count / held.deepest
        ways = np.round(part.count / np.maximum(mine, 1))
        expert = np.where(part.expert, 1, layouts.expert)
        stride = inner * np.where(part.expert, layouts.expert, 1)
        wanted = layouts.fsdp * expert * np.where(layouts.zero >= 3, layouts.data, 1)
        gathered += timed("all-gather", size, ways, stride)
        scattered += timed("reduce-scatter", size, ways, stride)
        scattered += timed("all-reduce", size, np.where(ways == 1, wanted, 1), stride)
    shards = cluster.software.shards
    twice = (layouts.remat == REMATS.index("full")) & (layouts.tensor > 1)
    return shards * gathered, shards * np.where(twice, TWICE, 1.0) * gathered, shards * scattered


def tables_s(
    model: ModelConfig, held: Held, layouts: Layouts, timed: communication.Timed
) -> tuple[Floats, Floats]:
    """Returns the seconds of collectives of the tables in a micro-batch: of fsdp, of the ring.

    A ring adds up their gradients. Where fsdp divides them, the table of tokens is gathered once,
    that of logits for the products of each direction, or the one of both once; the gradients of
    logits are scattered, and those of tokens added up in whole over all devices that have other
    tokens, as `exajax.models.layers.Embedding` does. Counted in llama3-8b on
    `pipe=2,fsdp=2,context=2,model=2` and gpt2-124m on `pipe=4,fsdp=4,context=4`.

    All of it is exposed in a pipeline, whose every turn has the first and the last stage's work as
    branches (`exajax.pipeline`) in which nothing overlaps, and beside a ring, as llama3-8b on
    `fsdp=2,context=8,model=2` has it. Other programs gather tables while they compute.
    """
    piped, ring = layouts.pipe > 1, layouts.context
    table = 2.0 * model.width * model.padded_vocab / layouts.tensor
    shards = layouts.fsdp * layouts.expert * np.where(layouts.zero >= 3, layouts.data, 1)
    ways = np.where(piped | (ring > 1), shards, 1)
    times = 1 if model.family == "gpt" else 3
    gathered = times * timed("all-gather", table, ways, ring * layouts.tensor)
    scattered = timed("reduce-scatter", table, ways, ring * layouts.tensor)
    tokens = timed("all-reduce", table, np.where(shards > 1, ways * ring, 1), layouts.tensor)
    mine = np.where(piped & (shards > 1), table / shards, 2.0 * held.mine[-1])
    return gathered + scattered + tokens, timed("all-reduce", mine, ring, layouts.tensor)


def gradients_s(
    held: Held,
    layouts: Layouts,
    several: Bools,
    back: Floats,
    room: Bools,
    timed: communication.Timed,
) -> Floats:
    """Returns the seconds in which replicas wait for gradients, and for what others have updated.

    Gradients of one micro-batch are added up block by block in bf16, those of several in one go
    behind the last, in fp32. ZeRO 1 adds up all of them on every device and keeps a part, ZeRO 2
    scatters them; both gather what has been updated in fp32.

    Args:
        held: parameters.
        layouts: how.
        several: whether gradients are sums over micro-batches.
        back: seconds of the backward pass over a block.
        room: whether the scheduler has memory left.
        timed: prices collectives.
    """
    mine: Floats = np.sum(held.mine, axis=0)
    ways = np.where(layouts.zero < 3, layouts.data, 1)
    stride = layouts.devices // (layouts.data * layouts.pipe)
    scatters = layouts.zero == 2
    size = np.where(several, 4.0, 2.0 / held.deepest) * mine
    summed = timed("all-reduce", size, np.where(scatters, 1, ways), stride)
    summed = summed + timed("reduce-scatter", size, np.where(scatters, ways, 1), stride)
    in_blocks = held.deepest * np.maximum(0.0, summed - np.where(room, IN_BLOCKS * back, 0.0))
    alone = ~room | (layouts.pipe > 1)
    reduced = np.where(alone, BETWEEN_STEPS["alone"], BETWEEN_STEPS["reduced"]) * summed
    divided = (layouts.zero == 1) | (layouts.zero == 2)
    gathered = timed("all-gather", 4.0 * mine, np.where(divided, ways, 1), stride)
    updated = np.where(alone, BETWEEN_STEPS["alone"], BETWEEN_STEPS["updated"]) * gathered
    return np.where(several, reduced, in_blocks) + updated


def offloaded_s(model: ModelConfig, layouts: Layouts, seq: int, cluster: Cluster) -> Floats:
    """Returns the seconds of waiting for a block's products on their way to the host and back."""
    T, t = layouts.micro_batch * seq / layouts.context, layouts.tensor
    gates = 2 if model.family in ("llama", "mixtral") else 1
    numbers = (model.heads + 2 * model.kv_heads) * model.head_dim + gates * model.ffn
    sent = 2 * T * (numbers / t + model.width / np.where(layouts.sequence_parallel, t, 1))
    offloads = layouts.remat == REMATS.index("offload")
    return np.where(offloads, OFFLOADED * 2 * sent / cluster.chip.host_bandwidth, 0.0)
