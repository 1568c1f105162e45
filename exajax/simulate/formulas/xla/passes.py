"""Forward and backward pass over a block of exajax's step on a device alone."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from exajax.recipe.recipe import REMATS
from exajax.simulate.formulas.shared.blocks import RECOMPUTED, block
from exajax.simulate.formulas.shared.kernels import Product, bytes_s, product_s
from exajax.simulate.formulas.shared.layouts import Floats, Layouts
from exajax.simulate.formulas.shared.outside_blocks import Index
from exajax.simulate.formulas.shared.saved import RECOMPUTES_LITTLE
from exajax.simulate.formulas.shared.shard import Shard
from exajax.simulate.formulas.shared.work import ProgramTraits, Work
from exajax.simulate.formulas.xla import elementwise
from exajax.simulate.formulas.xla.figures import EXPERT_CAPACITY, xla_figures


def traits() -> ProgramTraits:
    """In what XLA's program differs from others."""
    return ProgramTraits(
        merged_products=False,
        expert_capacity=EXPERT_CAPACITY,
        divided_tokens=False,
        loss_bytes=xla_figures().kernels.loss,
    )


@dataclass(frozen=True)
class XlaPasses:
    """Seconds of a block and a micro-batch on a device alone, of shape [N] each.

    Attributes:
        forward: the forward pass.
        backward: the backward pass, with what it recomputes.
        products: of both, matrix products and attention.
        ring: of both, attention in a ring, its products and what it moves; 0 without one.
    """

    forward: Floats
    backward: Floats
    products: Floats
    ring: Floats


def passes_of(work: Work, layouts: Layouts, parameters: elementwise.ParameterBytes) -> XlaPasses:
    """Seconds of a block's passes for a micro-batch."""
    chip, software = work.chip, work.software
    shard, which = Shard.distinct(layouts, work.seq)
    ring_s = [software.matmul * s[which] for s in ring_products_s(work, shard)]
    forward, backward = _products_s(work, layouts, shard, which, ring_s)
    bytes_ = elementwise.of_block(work, layouts)
    kernels = xla_figures().kernels
    memory_s = [
        software.memory
        * (
            bytes_s(bytes_[side] + parameters.block[side], chip)
            + (kernels.memory_bound[side] + kernels.ring[side] * (layouts.context - 1))
            * chip.launch_s
        )
        for side in (0, 1)
    ]
    of_ring = elementwise.of_ring(work.model, layouts, work.seq)
    moved_s = bytes_s(np.sum(of_ring, axis=0), chip)
    ring = layouts.context > 1
    attention = np.where(ring, ring_s[0] + ring_s[1] + software.memory * moved_s, 0.0)
    return XlaPasses(forward + memory_s[0], backward + memory_s[1], forward + backward, attention)


def _products_s(
    work: Work, layouts: Layouts, shard: Shard, which: Index, ring_s: Sequence[Floats]
) -> tuple[Floats, Floats]:
    """Seconds of matrix products and attention, forward, and backward with what is recomputed, [N].

    Args:
        work: the step.
        layouts: the layouts.
        shard: the distinct shards.
        which: which of them each layout has.
        ring_s: seconds of the products of attention in a ring, forward and backward.
    """
    parts = block(work, shard, traits()).products_s
    ring = layouts.context > 1
    scores = np.where(ring, 0.0, elementwise.unfused_scores(work.model, layouts, work.seq))
    score_bytes = xla_figures().elementwise.unfused_scores

    def seconds(part: str, side: int) -> Floats:
        alone = parts[part][side][which]
        if part != "attention":
            return alone
        unfused = alone + bytes_s(score_bytes[side] * scores, work.chip)
        return np.where(ring, ring_s[side], unfused)

    forward, backward = (np.sum([seconds(part, side) for part in parts], axis=0) for side in (0, 1))
    for index in np.unique(layouts.remat):
        for tensor in (False, True):
            chosen = (layouts.remat == index) & ((layouts.tensor > 1) == tensor)
            for part in recomputed_parts(REMATS[index], tensor):
                if part in parts and chosen.any():
                    backward = backward + np.where(chosen, seconds(part, 0), 0.0)
    return forward, backward


def ring_products_s(work: Work, shard: Shard) -> tuple[Floats, Floats]:
    """Seconds of the products of attention in a ring, forward and backward, [U].

    They are done for one pair of chunks after the other. Backward the scores are recomputed; those
    of a device's own chunks are there where they have been recomputed already.
    """
    model = work.model
    chunk = shard.queries / 2
    count, head = shard.sequences * model.heads / shard.tensor, 0 * chunk + model.head_dim
    scores = Product(count, chunk, chunk, head, weight=False)
    mix = Product(count, chunk, head, chunk, weight=False)
    gradients = [*scores.backward(), *mix.backward()]
    pairs = 2 * shard.context + 1
    there = 3 + 2 * (shard.context == 2)
    score_bytes = xla_figures().kernels.ring_scores

    def seconds(products: Sequence[Product]) -> Floats:
        return product_s(products, work.chip, work.precision, score_bytes)

    forward = pairs * seconds([scores, mix])
    return forward, pairs * seconds(gradients) + (pairs - there) * seconds([scores])


def recomputed_parts(remat: str, tensor: bool) -> tuple[str, ...]:
    """Parts of a block that the backward pass recomputes.

    Policies save results of products of two matrices; those of experts are of three dimensions. No
    gradient needs what the last product computes, but XLA leaves it out only where its result is
    not added up over devices.

    Args:
        remat: the policy.
        tensor: whether `tensor` divides matrices.
    """
    if remat in RECOMPUTES_LITTLE:
        return RECOMPUTED[remat]
    left_out = ("experts",) if tensor else ("down", "experts")
    return (*(part for part in RECOMPUTED[remat] if part not in left_out), "experts")
