"""One micro-batch on its way through a block of a PyTorch step, over arrays of layouts."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from exajax.recipe.recipe import REMATS
from exajax.simulate.formulas.shared.blocks import block
from exajax.simulate.formulas.shared.communication import BlockCollectiveTimes
from exajax.simulate.formulas.shared.layouts import Floats, Layouts
from exajax.simulate.formulas.shared.outside_blocks import Index, host_exposed_s
from exajax.simulate.formulas.shared.shard import Shard
from exajax.simulate.formulas.shared.work import ProgramTraits, Work
from exajax.simulate.formulas.torch.figures import torch_figures
from exajax.simulate.timeline import OVERLAP_SLOWDOWN


def traits() -> ProgramTraits:
    """In what Megatron-LM's kernels differ from those of others."""
    return ProgramTraits(
        merged_products=True,
        expert_capacity=1.0,
        divided_tokens=True,
        loss_bytes=torch_figures().loss,
    )


@dataclass(frozen=True)
class TorchPasses:
    """Seconds of a block and a micro-batch on a device alone, of shape [N] each.

    Attributes:
        forward: the forward pass.
        backward: the backward pass, without what it recomputes.
        recomputed: what it recomputes.
        products: of all three, matrix products and attention.
        attention: attention, forward and backward.
        kernels: kernels that the host starts, forward and backward.
    """

    forward: Floats
    backward: Floats
    recomputed: Floats
    products: Floats
    attention: tuple[Floats, Floats]
    kernels: tuple[Floats, Floats]


def passes_of(work: Work, layouts: Layouts, shard: Shard, which: Index) -> TorchPasses:
    """What a device computes for a block and a micro-batch.

    Args:
        work: the step.
        layouts: the layouts.
        shard: the distinct shards.
        which: which of them each layout has.
    """
    alone = block(work, shard, traits())

    def sum_of(parts: Iterable[Floats]) -> Floats:
        return np.sum(list(parts), axis=0)[which]

    kernels = [sum_of(of_part[side] for of_part in alone.kernels.values()) for side in (0, 1)]
    products = sum_of(f + b for f, b in alone.products_s.values())
    recomputed = np.zeros(len(layouts))
    for index in np.unique(layouts.remat):
        chosen, remat = layouts.remat == index, REMATS[index]
        recomputed[chosen] = alone.recomputed_s(remat)[which][chosen]
        products[chosen] += alone.recomputed_products_s(remat)[which][chosen]
        kernels[1][chosen] += alone.recomputed_kernels(remat)[which][chosen]
    return TorchPasses(
        sum_of(alone.forward_s.values()),
        sum_of(alone.backward_s.values()),
        recomputed,
        products,
        (alone.forward_s["attention"][which], alone.backward_s["attention"][which]),
        (kernels[0], kernels[1]),
    )


@dataclass(frozen=True)
class BlockTimes:
    """Seconds of a block and a micro-batch, forward and backward, of shape [N] each.

    Attributes:
        compute: what the device computes, slowed by what overlaps with it.
        products: matrix products and attention of these.
        host: the device idle until its host has started the next kernel.
        tensor: exposed collectives of tensor-parallel sublayers.
        context: exposed keys and values.
        expert: exposed exchanges of tokens.
        shards: exposed gathering of parameters and scattering of gradients.
        free: in which the device computes and sends nothing, forward and backward; no part of
            `total`.
    """

    compute: Floats
    products: Floats
    host: Floats
    tensor: Floats
    context: Floats
    expert: Floats
    shards: Floats
    free: tuple[Floats, Floats]

    @property
    def total(self) -> Floats:
        """All but `free`, shape [N]."""
        exposed = self.host + self.tensor + self.context + self.expert + self.shards
        return self.compute + exposed


def sum_of_exposed(pairs: Iterable[tuple[Floats, Floats]]) -> Floats:
    """Seconds of collectives beyond the compute that they overlap with, added up, [N].

    Args:
        pairs: seconds of a collective, and of the compute.
    """
    exposed: Floats = np.sum([np.maximum(0.0, sent - compute) for sent, compute in pairs], axis=0)
    return exposed


def block_times(
    work: Work, layouts: Layouts, passes: TorchPasses, collectives_s: BlockCollectiveTimes
) -> BlockTimes:
    """How long a block takes, forward and backward, with what is exposed.

    Parameters of the next block are gathered while this one computes, gradients of the last one
    scattered; what takes longer than that is exposed. So are keys and values of a ring longer than
    attention, and everything that a sublayer needs at once.
    """
    backward = passes.backward + passes.recomputed
    hidden = 1.0 if work.software.overlaps("parameters") else 0.0
    both = collectives_s.gathered + collectives_s.scattered
    # Keys and values are on their way during attention, and nothing else then.
    free_forward, free_backward = (
        side - np.minimum(ring, attention)
        for side, ring, attention in zip(
            (passes.forward, backward), collectives_s.context, passes.attention, strict=True
        )
    )
    ring = sum_of_exposed(zip(collectives_s.context, passes.attention, strict=True))
    overlapped = np.minimum(collectives_s.gathered, free_forward) + np.minimum(both, free_backward)
    slowed = OVERLAP_SLOWDOWN[work.chip.platform] * hidden * overlapped
    pairs = ((collectives_s.gathered, hidden * free_forward), (both, hidden * free_backward))
    forward_sent, backward_sent, recomputed_sent = collectives_s.tensor
    busy = (passes.forward + forward_sent, backward + backward_sent + recomputed_sent)
    return BlockTimes(
        passes.forward + backward + slowed,
        passes.products,
        host_exposed_s(passes.kernels, busy, layouts, work.software),
        forward_sent + backward_sent + recomputed_sent,
        ring,
        collectives_s.expert[0] + collectives_s.expert[1] + collectives_s.expert[2],
        sum_of_exposed(pairs),
        (
            np.maximum(0.0, free_forward - collectives_s.gathered),
            np.maximum(0.0, free_backward - both),
        ),
    )
