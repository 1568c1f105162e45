"""Bytes that XLA's program of our own step moves besides those of products and attention.

A pass over the layers is a loop there: it slices each layer's parameters out of their stack, and
writes what it keeps, and gradients, into stacks that were filled with zeros before. What of the
rest is fused with what is the compiler's affair: those bytes are read in compiled programs, see
`TABLES`.
"""

from collections.abc import Mapping
from dataclasses import astuple, dataclass

import numpy as np

from exajax.machine.chip import Chip
from exajax.machine.cluster import Cluster
from exajax.models.dimensions import ModelConfig
from exajax.recipe.recipe import REMATS
from exajax.simulate.formulas import saved
from exajax.simulate.formulas.communication import block_parameters
from exajax.simulate.formulas.layouts import Bools, Floats, Layouts
from exajax.simulate.formulas.saved import CAPACITY
from exajax.simulate.formulas.xla.exposed import Held


@dataclass(frozen=True)
class Moved:
    """Bytes that one pass over a block moves for each token and each of its numbers.

    Attributes:
        stream: for each number of the residual stream.
        kv: for each number of queries, keys and values.
        ffn: for each number between the matrices of the feed-forward.
        scores: for each score of attention that is not fused.
    """

    stream: float
    kv: float
    ffn: float
    scores: float


Passes = tuple[Moved, Moved]
"""Of the forward pass; of the backward pass with all that it makes again."""

_H100_LLAMA = {
    "none": (Moved(82, 12, 42, 43), Moved(74, 11, 19, 23)),
    "selective": (Moved(24, 12, 18, 20), Moved(36, 13, 9, 37)),
    "save-dots-except-mlp": (Moved(24, 12, 6, 20), Moved(38, 13, 9, 38)),
    "save-qkv": (Moved(14, 12, 6, 20), Moved(42, 13, 9, 37)),
    "full": (Moved(14, 6, 6, 20), Moved(45, 14, 8, 36)),
    "offload": (Moved(20, 8, 6, 20), Moved(36, 11, 9, 38)),
}
_H100_GPT = {
    "none": (Moved(74, 12, 42, 43), Moved(50, 11, 21, 23)),
    "selective": (Moved(26, 12, 9, 20), Moved(6, 13, 16, 34)),
    "save-dots-except-mlp": (Moved(17, 12, 0, 20), Moved(8, 13, 16, 34)),
    "save-qkv": (Moved(7, 12, 0, 20), Moved(10, 13, 16, 33)),
    "full": (Moved(6, 6, 0, 20), Moved(0, 14, 17, 33)),
    "offload": (Moved(6, 8, 5, 20), Moved(10, 11, 16, 34)),
}
_A100_LLAMA = {
    "none": (Moved(82, 12, 36, 39), Moved(71, 13, 26, 23)),
    "selective": (Moved(26, 12, 12, 20), Moved(21, 18, 19, 37)),
    "save-dots-except-mlp": (Moved(26, 12, 0, 20), Moved(23, 18, 19, 37)),
    "save-qkv": (Moved(14, 12, 0, 20), Moved(27, 18, 19, 36)),
    "full": (Moved(14, 6, 0, 20), Moved(30, 20, 18, 36)),
    "offload": (Moved(22, 8, 0, 20), Moved(31, 13, 17, 37)),
}
_A100_GPT = {
    "none": (Moved(81, 12, 40, 39), Moved(48, 13, 31, 23)),
    "selective": (Moved(10, 12, 5, 20), Moved(56, 18, 18, 34)),
    "save-dots-except-mlp": (Moved(19, 12, 0, 20), Moved(0, 18, 22, 34)),
    "save-qkv": (Moved(7, 12, 0, 20), Moved(0, 18, 22, 34)),
    "full": (Moved(9, 6, 0, 20), Moved(0, 20, 23, 34)),
    "offload": (Moved(0, 8, 0, 20), Moved(65, 13, 18, 34)),
}

TABLES: Mapping[tuple[bool, bool], Mapping[str, Passes]] = {
    (True, True): _H100_LLAMA,
    (True, False): _H100_GPT,
    (False, True): _A100_LLAMA,
    (False, False): _A100_GPT,
}
"""By whether the chip computes in bf16 besides products, which CUDA GPUs do from compute capability
9.0 on, and whether the feed-forward is gated; then by remat. Least squares over the bytes of
compiled programs of 16 layers, of which width, feed-forward, heads and tokens were doubled one by
one (`benchmarks/fit_moved.py`)."""

ALIKE = {"attention": "none", "save-dots-except-mlp-wi": "save-dots-except-mlp"}
"""Policies that compile to the program of another."""


SCORES = (4.0, 7.0)
"""Bytes of a score that is not fused, over those of bf16, in the products that write and read it in
fp32: ahead, which is made again, and back. Chosen by three compiled programs."""

CASTS = (3.0, 6.0)
"""Bytes of casting a number to fp8: read in bf16 and written in 8 bits; of a gradient read once
more before, for the largest of all, and written once more, turned."""

ROUTED = (12.0, 30.0)
"""Bytes for each number of a token on its way to an expert and back, ahead and back, counted in two
compiled programs."""


RING_SCORES = (11.0, 22.5)
"""Bytes for each score that a ring computes, forward and backward, besides those of its products;
what is recomputed is as forward. As `RING_STEP`, from the programs of llama3-8b with two and eight
ways of `context`."""

RING_STEP = (36.0, 12.0)
"""Bytes for each number of the queries in every step of a ring: the sums of what is mixed so far,
in fp32, are scaled and added to."""


def ring_pairs(layouts: Layouts) -> Floats:
    """Returns the pairs of chunks that a device of a ring works on: 3 of its own, 2 of others'.

    A sequence has two chunks for each device (`exajax.models.attention`).
    """
    return 2.0 * layouts.context.astype(np.float64) + 1


def scores(model: ModelConfig, layouts: Layouts, seq: int) -> Floats:
    """Returns the scores of a block and micro-batch on a device, 0 where attention is fused, [N].

    Of a ring each device has its own queries and all keys, and leaves out what is masked.
    """
    ways = layouts.context
    chunk = seq / (2 * ways)
    a_head = np.where(ways > 1, ring_pairs(layouts) * chunk**2, (seq / ways) * seq)
    all_of_them = layouts.micro_batch * a_head * model.heads / layouts.tensor
    return np.where(layouts.flash, 0.0, all_of_them)


def of_ring(model: ModelConfig, layouts: Layouts, seq: int) -> tuple[Floats, Floats]:
    """Returns the bytes that a ring moves in a block, forward and backward, [N]; 0 without one.

    Policies but `none` recompute its scores.
    """
    ways = layouts.context
    queries = layouts.micro_batch * seq / ways * model.heads * model.head_dim / layouts.tensor
    forward, backward = (
        RING_SCORES[side] * scores(model, layouts, seq) + RING_STEP[side] * ways * queries
        for side in (0, 1)
    )
    again = np.where(layouts.remat == REMATS.index("none"), 0.0, forward)
    alone = ways == 1
    return np.where(alone, 0.0, forward), np.where(alone, 0.0, backward + again)


def of_block(
    model: ModelConfig, layouts: Layouts, seq: int, precision: str, cluster: Cluster
) -> tuple[Floats, Floats]:
    """Returns the bytes of activations that a pass ahead and a pass back move in a block, [N].

    What a stage of a pipeline keeps is put among that of other micro-batches, over what was there
    before, and taken out again: with zeros to begin with, it is moved 4 times ahead, 2 times back.
    """
    T, t = layouts.micro_batch * seq / layouts.context, layouts.tensor
    between = T / np.where(layouts.sequence_parallel, t, 1)
    kv = (model.heads + 2 * model.kv_heads) * model.head_dim / t
    mixture = model.mixture_share * model.top_k * CAPACITY
    routed = mixture + 1 - model.mixture_share
    feed_forward = T * routed * model.ffn / t
    unfused = np.where(layouts.context > 1, 0.0, scores(model, layouts, seq))
    numbers = np.stack([between * model.width, T * kv, feed_forward, unfused])
    kept = np.where(
        layouts.pipe > 1, saved.of_block(model, layouts, seq, cluster.software, precision), 0.0
    )
    slots = T * mixture * model.width
    ring = of_ring(model, layouts, seq)
    turned, casts = _turned(model, layouts, T), _casts(model, layouts, T, precision)
    ahead, back = (
        np.sum(one[layouts.remat].T * numbers, axis=0)
        + ROUTED[side] * slots
        + (4, 2)[side] * kept
        + turned[side]
        + casts[side]
        + ring[side]
        for side, one in enumerate(_table(model, cluster.chip))
    )
    return ahead, back


def _casts(
    model: ModelConfig, layouts: Layouts, tokens: Floats, precision: str
) -> tuple[Floats | float, Floats | float]:
    """Returns what casts to fp8 move: of factors of products, of gradients, of parameters."""
    if precision != "fp8":
        return 0.0, 0.0
    t, D, F = layouts.tensor, model.width, model.ffn / layouts.tensor
    heads = model.heads * model.head_dim / t
    kv = 2 * model.kv_heads * model.head_dim / t
    gates = 2 if model.family in ("llama", "mixtral") else 1
    multiplied = CASTS[0] * block_parameters(model, layouts)
    ahead = CASTS[0] * tokens * (2 * D + heads + F) + multiplied
    back = CASTS[1] * tokens * (heads + kv + 2 * D + gates * F) + multiplied
    return ahead, back


def _table(model: ModelConfig, chip: Chip) -> tuple[Floats, Floats]:
    """Returns the coefficients of `Moved` by remat, [R, 4], ahead and back."""
    native = chip.xla_target.get("compute_capability", (9, 0))[0] >= 9
    table = TABLES[native, model.family in ("llama", "mixtral")]
    rows = [table[ALIKE.get(remat, remat)] for remat in REMATS]
    ahead, back = (np.array([astuple(row[side]) for row in rows]) for side in (0, 1))
    return ahead, back


def _turned(model: ModelConfig, layouts: Layouts, tokens: Floats) -> tuple[Floats, Floats]:
    """Returns the bytes of turning around what is gathered and scattered within a block.

    A collective divides the first dimension of an array. Sequences are the second of a micro-batch
    of several, so each result is turned before or behind: read and written in bf16, 4 times ahead
    and as often as something is gathered or scattered back; one more is a sum of two.
    """
    whole = tokens * model.width
    divided = layouts.sequence_parallel & (layouts.tensor > 1)
    several = divided & (layouts.micro_batch > 1)
    remade = np.where(layouts.remat == REMATS.index("full"), 4, 0)
    ahead = np.where(several, 4 * 4.0, 0.0)
    back = np.where(several, (6 + remade) * 4.0, 0.0) + np.where(divided, 6.0, 0.0)
    return ahead * whole, back * whole


@dataclass(frozen=True)
class OfParameters:
    """Bytes that parameters cost; of shape [N].

    Attributes:
        block: in every block and micro-batch, ahead and back.
        ends: outside of blocks, in every micro-batch.
        step: once in a step, for all that a device holds.
    """

    block: tuple[Floats, Floats]
    ends: Floats
    step: Floats


def of_parameters(held: Held, layouts: Layouts, several: Bools, precision: str) -> OfParameters:
    """Returns what parameters cost besides products and the update.

    A number in bf16 that is copied costs 4 bytes: it is sliced out of its stack ahead and back,
    and its gradient is written into one that was filled with zeros. Some matrices are turned
    around: 1.4 bytes for each of all numbers, chosen like the shares of `waits`. Where a layer's
    gradients are added up over replicas in one collective, they are put side by side before it and
    taken apart behind; a ring does so with every micro-batch, and with those of tables too.
    Gradients of several micro-batches are added up in fp32, which a pipeline fills up with zeros
    first.

    Args:
        held: parameters.
        layouts: how.
        several: whether gradients are sums over micro-batches.
        precision: what the passes compute in.
    """
    mine: Floats = np.sum(held.mine[:-1], axis=0) / held.deepest
    whole: Floats = np.sum([part.count for part in held.parts[:-1]], axis=0) / held.deepest
    ends = held.mine[-1]
    replicas = np.where(layouts.zero < 3, layouts.data, 1) > 1
    ring = layouts.context > 1
    together = np.where(ring | (replicas & ~several & (layouts.zero < 2)), 8.0, 0.0)
    turned = 1.4
    added = np.where(several, 10.0, 0.0) + np.where(layouts.pipe > 1, 3.0, 0.0)
    cast = 0.0 if precision in ("fp32", "pure-bf16") else 6.0
    # Sums begin as zeros and end as means; what ZeRO 1 and 2 have gathered is turned around.
    once = cast + np.where(several, 4.0 + 8.0 * replicas, 0.0)
    once = once + np.where(replicas & (layouts.zero >= 1), 9.0, 0.0)
    return OfParameters(
        (4.0 * mine + turned * whole, (10.0 + together + added) * mine + turned * whole),
        (np.where(several, 10.0, 0.0) + np.where(ring, 8.0, 0.0)) * ends,
        once * (mine * held.deepest + ends),
    )
