"""One micro-batch on its way through a block and through both ends, over arrays of layouts."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from exajax.machine.cluster import Cluster
from exajax.machine.software import SoftwareProfile
from exajax.models.dimensions import ModelConfig
from exajax.recipe.recipe import REMATS
from exajax.simulate.formulas import communication
from exajax.simulate.formulas.blocks import ELEMENT, Shard, block
from exajax.simulate.formulas.kernels import Product, bytes_s, product_s
from exajax.simulate.formulas.layouts import Floats, Layouts
from exajax.simulate.timeline import OVERLAP_SLOWDOWN

Index = NDArray[np.intp]
"""Which of the distinct shards each layout has, shape [N]."""

LOSS_BYTES = {"jax": 8.4, "megatron": 26.0}
"""Bytes for each logit, forward and backward, besides its products. Ours: read in three compiled
programs (gpt2-124m, llama3-8b with two and four ways of `context`), where XLA fuses the conversions
to fp32: the maximum and the target's logit are read in bf16, the sum is read and written on. Else
counted by hand of a loss that is not fused: to fp32, maximum, exponential and sum; the gradient."""


@dataclass(frozen=True)
class Work:
    """Seconds of a block and a micro-batch on a device alone, of shape [N] each.

    Attributes:
        ahead: of the forward pass.
        back: of the backward pass.
        remade: of what that makes again.
        products: of all three, matrix products and attention.
        attention: of attention, forward and backward.
        kernels: that the host starts, forward and backward.
    """

    ahead: Floats
    back: Floats
    remade: Floats
    products: Floats
    attention: tuple[Floats, Floats]
    kernels: tuple[Floats, Floats]


def work_of(
    model: ModelConfig,
    cluster: Cluster,
    layouts: Layouts,
    shard: Shard,
    which: Index,
    precision: str,
) -> Work:
    """Returns what a device does for a block and a micro-batch, given the shards that differ."""
    one = block(model, shard, cluster.chip, precision, cluster.software)

    def sum_of(parts: Iterable[Floats]) -> Floats:
        return np.sum(list(parts), axis=0)[which]

    kernels = [sum_of(of_part[side] for of_part in one.kernels.values()) for side in (0, 1)]
    products = sum_of(f + b for f, b in one.products_s.values())
    remade = np.zeros(len(layouts))
    for index in np.unique(layouts.remat):
        chosen, remat = layouts.remat == index, REMATS[index]
        remade[chosen] = one.remade_s(remat)[which][chosen]
        products[chosen] += one.remade_products_s(remat)[which][chosen]
        kernels[1][chosen] += one.remade_kernels(remat)[which][chosen]
    return Work(
        sum_of(one.forward_s.values()),
        sum_of(one.backward_s.values()),
        remade,
        products,
        (one.forward_s["attention"][which], one.backward_s["attention"][which]),
        (kernels[0], kernels[1]),
    )


@dataclass(frozen=True)
class Turn:
    """Seconds of a block and a micro-batch there and back, of shape [N] each.

    Attributes:
        compute: what the device does, slowed by what goes on beside it.
        products: matrix products and attention of these.
        host: waiting for the host.
        tensor: waiting for tensor-parallel sublayers.
        context: waiting for keys and values.
        expert: waiting for tokens.
        shards: waiting for parameters and gradients.
        free: in which the device computes and sends nothing, forward and backward; no wait.
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
        """All of them."""
        waiting = self.host + self.tensor + self.context + self.expert + self.shards
        return self.compute + waiting


def sum_of_waits(pairs: Iterable[tuple[Floats, Floats]]) -> Floats:
    """Returns how much longer each takes than what it is beside, all of them added up."""
    waits: Floats = np.sum([np.maximum(0.0, sent - beside) for sent, beside in pairs], axis=0)
    return waits


def turn_of(work: Work, sent: communication.Sent, layouts: Layouts, cluster: Cluster) -> Turn:
    """Returns how long a block takes there and back, with what it waits for.

    Parameters of the next block are gathered while this one computes, gradients of the last one
    scattered; what takes longer than that is waited for. So are keys and values of a ring longer
    than attention, and everything that a sublayer needs at once.
    """
    software = cluster.software
    back = work.back + work.remade
    hidden = 1.0 if software.hides("parameters") else 0.0
    both = sent.gathered + sent.scattered
    # Keys and values are on their way beside attention, and nothing else then.
    free_ahead, free_back = (
        side - np.minimum(ring, attention)
        for side, ring, attention in zip(
            (work.ahead, back), sent.context, work.attention, strict=True
        )
    )
    ring = sum_of_waits(zip(sent.context, work.attention, strict=True))
    beside = np.minimum(sent.gathered, free_ahead) + np.minimum(both, free_back)
    slowed = OVERLAP_SLOWDOWN[cluster.chip.platform] * hidden * beside
    shown = ((sent.gathered, hidden * free_ahead), (both, hidden * free_back))
    ahead_sent, back_sent, remade_sent = sent.tensor
    busy = (work.ahead + ahead_sent, back + back_sent + remade_sent)
    return Turn(
        work.ahead + back + slowed,
        work.products,
        waiting_for_host(work.kernels, busy, layouts, software),
        ahead_sent + back_sent + remade_sent,
        ring,
        sent.expert[0] + sent.expert[1] + sent.expert[2],
        sum_of_waits(shown),
        (np.maximum(0.0, free_ahead - sent.gathered), np.maximum(0.0, free_back - both)),
    )


def waiting_for_host(
    kernels: Sequence[Floats], busy_s: Sequence[Floats], layouts: Layouts, software: SoftwareProfile
) -> Floats:
    """Returns the seconds in which a device waits for what its host has not started yet.

    Args:
        kernels: of a block, forward and backward.
        busy_s: seconds that the device has to do in each.
        layouts: how; tensor-parallel passes have two collectives, or four where they divide the
            sequence.
        software: says how long the host takes.
    """
    collectives = np.where(layouts.tensor > 1, np.where(layouts.sequence_parallel, 4, 2), 0)
    idle = np.zeros(len(layouts))
    for count, seconds in zip(kernels, busy_s, strict=True):
        host_s = software.host_s * count + software.host_collective_s * collectives
        idle += np.maximum(0.0, host_s - seconds)
    return idle


@dataclass(frozen=True)
class Ends:
    """Seconds of what is outside of blocks, there and back, for a micro-batch; [N] each.

    Attributes:
        head: final norm, logits and loss.
        products: matrix products of these.
        table: what tokens become a stream with.
    """

    head: Floats
    products: Floats
    table: Floats


def ends_of(
    model: ModelConfig, shard: Shard, cluster: Cluster, precision: str, which: Index
) -> Ends:
    """Returns what the first and the last stage do besides their blocks."""
    chip, software = cluster.chip, cluster.software
    used = "bf16" if precision == "fp8" else precision
    ones = np.ones_like(shard.tokens)
    images = model.family == "vit"
    rows = shard.sequences if images else shard.tokens
    columns = model.padded_vocab / shard.tensor
    logits = Product(ones, rows, columns * ones, model.width * ones)
    products = software.matmul * product_s([logits, *logits.backward()], chip, used)
    moved = bytes_s(LOSS_BYTES[software.program] * rows * columns, chip) + 6 * chip.launch_s
    stream = shard.tokens * model.width * ELEMENT
    table = software.memory * (bytes_s(5 * stream, chip) + 4 * chip.launch_s)
    if images:  # the stream begins with a product, whose input has no gradient
        patches = Product(ones, shard.tokens, model.width * ones, model.patch_size * ones)
        table += software.matmul * product_s([patches, patches.backward()[1]], chip, used)
    return Ends((products + software.memory * moved)[which], products[which], table[which])
