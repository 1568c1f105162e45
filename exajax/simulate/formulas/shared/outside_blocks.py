"""What is outside of blocks, and what a device waits for its host; over arrays of layouts."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from exajax.machine.software import SoftwareProfile
from exajax.simulate.formulas.shared.kernels import Product, bytes_s, product_s
from exajax.simulate.formulas.shared.layouts import Floats, Layouts
from exajax.simulate.formulas.shared.shard import ELEMENT, Shard
from exajax.simulate.formulas.shared.work import ProgramTraits, Work

Index = NDArray[np.intp]
"""Which of the distinct shards each layout has, shape [N]."""

HEAD_KERNELS, TABLE_KERNELS = 6, 4
"""Kernels of the loss, and of the table of tokens, forward and backward; counted by hand."""

TABLE_PASSES = 5
"""How often the table of tokens reads or writes the stream; counted by hand."""


@dataclass(frozen=True)
class OutsideBlocks:
    """Seconds of what is outside of blocks, forward and backward, for a micro-batch; [N] each.

    Attributes:
        head: final norm, logits and loss.
        products: matrix products of these.
        table: the table that turns tokens into the stream, or the product with patches.
    """

    head: Floats
    products: Floats
    table: Floats


def outside_blocks_of(
    work: Work, shard: Shard, which: Index, traits: ProgramTraits
) -> OutsideBlocks:
    """Seconds of what the first and the last stage compute besides their blocks."""
    model, chip, software = work.model, work.chip, work.software
    precision = "bf16" if work.precision == "fp8" else work.precision
    ones = np.ones_like(shard.tokens)
    rows = shard.tokens if model.is_text else shard.sequences
    columns = model.padded_vocab / shard.tensor
    logits = Product(ones, rows, columns * ones, model.width * ones)
    products = software.matmul * product_s([logits, *logits.backward()], chip, precision)
    loss_bytes = traits.loss_bytes * rows * columns
    loss = bytes_s(loss_bytes, chip) + HEAD_KERNELS * chip.launch_s
    stream = shard.tokens * model.width * ELEMENT
    table = software.memory * (bytes_s(TABLE_PASSES * stream, chip) + TABLE_KERNELS * chip.launch_s)
    if not model.is_text:  # the stream begins with a product, whose input has no gradient
        patches = Product(ones, shard.tokens, model.width * ones, model.patch_size * ones)
        table += software.matmul * product_s([patches, patches.backward()[1]], chip, precision)
    return OutsideBlocks((products + software.memory * loss)[which], products[which], table[which])


def host_exposed_s(
    kernels: Sequence[Floats], busy_s: Sequence[Floats], layouts: Layouts, software: SoftwareProfile
) -> Floats:
    """Seconds in which a device is idle until its host has started the next kernel, [N].

    Args:
        kernels: of a block, forward and backward.
        busy_s: seconds that the device has to do in each.
        layouts: tensor-parallel passes have two collectives, or four where they divide the
            sequence.
        software: seconds that the host takes for each kernel and collective.
    """
    collectives = np.where(layouts.tensor > 1, np.where(layouts.sequence_parallel, 4, 2), 0)
    idle = np.zeros(len(layouts))
    for count, seconds in zip(kernels, busy_s, strict=True):
        host_s = software.host_s * count + software.host_collective_s * collectives
        idle += np.maximum(0.0, host_s - seconds)
    return idle
