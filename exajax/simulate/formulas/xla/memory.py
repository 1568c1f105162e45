"""Memory of a device at the peak of exajax's step under XLA, over arrays of layouts.

By hand from the buffers of compiled programs; `benchmarks/engines.py` compares it with more of
them. Masters and moments are in fp32, copies to compute with and gradients of a micro-batch in
bf16. The peak is where the loss is computed, within the backward pass, or where ZeRO 1 and 2 gather
what they have updated.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from exajax.machine.chip import Chip
from exajax.recipe.recipe import REMATS
from exajax.simulate.formulas.shared import weights
from exajax.simulate.formulas.shared.layouts import Bools, Floats, Ints, Layouts
from exajax.simulate.formulas.shared.results import Footprint
from exajax.simulate.formulas.shared.saved import Saved, in_flight, logits
from exajax.simulate.formulas.shared.work import Work
from exajax.simulate.formulas.xla import saved
from exajax.simulate.formulas.xla.figures import EXPERT_CAPACITY, xla_figures

NO_REMAT = REMATS.index("none")


def memory(work: Work, layouts: Layouts, *, unlimited: bool = False) -> Footprint:
    """Bytes of a device at the peak of a step.

    Args:
        work: the step.
        layouts: the layouts.
        unlimited: whether the device has room for everything that XLA's scheduler could also do
            without; else it goes by the chip's memory.
    """
    micro_batches = layouts.micro_batches(work.global_batch)
    block = saved.saved_by_block(work, layouts)
    needed = _footprint(work, layouts, micro_batches, block)
    if unlimited or not saved.in_two_orders(layouts).any():
        return needed
    # The second order of the stream is saved only where there is room for it.
    once = saved.saved_by_block(work, layouts, two_orders=False)
    activations = _activations(once, _blocks(work, layouts), layouts, micro_batches)
    room = has_room(needed, work.chip)
    return dataclasses.replace(needed, activations=np.where(room, needed.activations, activations))


def has_room(needed: Footprint, chip: Chip) -> Bools:
    """Whether the scheduler has memory left, shape [N]."""
    figures = xla_figures().memory
    arguments = needed.parameters + needed.optimizer
    limit = figures.scheduler_share * chip.memory_bytes - arguments
    left: Bools = needed.total - arguments <= figures.scheduler_slop * limit
    return left


@dataclass(frozen=True)
class _Widths:
    """Bytes of a number: of masters and moments, and of what passes compute with."""

    masters: float
    computed: float

    @classmethod
    def of(cls, precision: str) -> "_Widths":
        return cls(2.0 if precision == "pure-bf16" else 4.0, 4.0 if precision == "fp32" else 2.0)


def _blocks(work: Work, layouts: Layouts) -> Floats:
    """Blocks of the deepest stage, shape [N]."""
    return np.ceil(work.model.layers / layouts.pipe)


def _footprint(work: Work, layouts: Layouts, micro_batches: Ints, block: Saved) -> Footprint:
    """The memory of a step where the scheduler has room for everything.

    Args:
        work: the step.
        layouts: the layouts.
        micro_batches: micro-batches of a step, shape [N].
        block: what a block saves of one.
    """
    parts = weights.of_stage(work.model, layouts)
    widths = _Widths.of(work.precision)
    local = weights.share(parts, layouts, "parameters")
    blocks, piped = _blocks(work, layouts), layouts.pipe > 1
    repeated = (micro_batches > 1) | piped
    copy = local * widths.computed if widths.masters != widths.computed else 0 * local
    gradients = weights.share(parts, layouts, "gradients")
    current = widths.computed * np.where(repeated, local, gradients)
    activations = _activations(block, blocks, layouts, micro_batches)
    space = widths.computed / 2 * _work_bytes(work, layouts) + current
    if work.model.moe_every > 1:
        space = space + _recomputed_group(work, layouts)
    loss = _loss_bytes(work, layouts, parts, repeated, widths)
    levels = (layouts.zero == 1) | (layouts.zero == 2)
    updated = np.where(levels & (layouts.data > 1), 4 * local, 0) - copy - activations
    gathered = _gathered(parts[:2], work, layouts, widths.computed / blocks)
    return Footprint(
        parameters=widths.masters * local,
        gradients=_sums(work, layouts, repeated, local),
        optimizer=2 * widths.masters * weights.share(parts, layouts, "optimizer"),
        activations=activations,
        temporaries=copy + gathered + np.maximum(np.maximum(loss, space), updated),
    )


def _sums(work: Work, layouts: Layouts, repeated: Bools, local: Floats) -> Floats:
    """Bytes of the sums of gradients over micro-batches, as large as what a device computes with.

    A pipeline has those of the largest matrix of its blocks once more.
    """
    model = work.model
    sums = np.where(repeated, 4 * local, 0)
    largest = _blocks(work, layouts) * model.width * model.ffn * max(1, model.experts)
    largest = largest / layouts.tensor
    again = xla_figures().memory.pipeline_gradient * largest / layouts.fsdp / layouts.expert
    sums += np.where(layouts.pipe > 1, again, 0)
    return sums


def _loss_bytes(
    work: Work,
    layouts: Layouts,
    parts: Sequence[weights.Weights],
    repeated: Bools,
    widths: _Widths,
) -> Floats:
    """Bytes where the loss is computed: logits, and what fsdp divides of their matrix, gathered.

    The gradient of that matrix is whole at first.
    """
    model, figures = work.model, xla_figures().memory
    bytes_ = widths.computed / 2 * figures.logits * logits(model, layouts, work.seq)
    bytes_ = np.where(repeated, figures.repeated_logits, 1.0) * bytes_
    table = widths.computed * model.width * model.padded_vocab / layouts.tensor
    divided = parts[2].count > weights.share(parts[2:], layouts, "parameters")
    return bytes_ + np.where(divided, 2 * table, 0.0)


def _activations(block: Saved, blocks: Floats, layouts: Layouts, micro_batches: Ints) -> Floats:
    """Bytes that all blocks of a stage save, shape [N].

    In a pipeline, what a forward slot makes is on its way into the saved arrays while a backward
    slot has taken its own out: one part of a stage more than the schedule has in flight.
    """
    most = in_flight(layouts, micro_batches)
    most = most + np.where(layouts.pipe > 1, 1 / layouts.interleave, 0.0)
    of_a_micro_batch = block.total + saved.saved_twice_in_loop(block, layouts, micro_batches)
    return of_a_micro_batch * blocks * most


def _gathered(
    parts: Sequence[weights.Weights], work: Work, layouts: Layouts, bytes_each: Floats
) -> Floats:
    """Bytes gathered of divided parameters: those of two blocks, or two groups of them, [N].

    Args:
        parts: parameters of the blocks of a stage.
        work: the step.
        layouts: the layouts.
        bytes_each: bytes of a number, over the blocks of the stage.
    """
    undivided: Floats = np.sum([part.count for part in parts], axis=0)
    divided = undivided > weights.share(parts, layouts, "parameters")
    return np.where(divided, 2.0 * work.model.moe_every * bytes_each * undivided, 0.0)


def _recomputed_group(work: Work, layouts: Layouts) -> Floats:
    """Bytes that the other layers of a group save while the group is recomputed as one, [N]."""
    everything = dataclasses.replace(layouts, remat=np.full_like(layouts.remat, NO_REMAT))
    block = saved.saved_by_block(work, everything).total
    alone = saved.saves_stream_alone(layouts)
    return (work.model.moe_every - 1) * np.where(alone, block, 0.0)


def _work_bytes(work: Work, layouts: Layouts) -> Floats:
    """Bytes of work space in the backward pass of a block, shape [N]."""
    model = work.model
    number_bytes, score_bytes = xla_figures().memory.work
    tokens = layouts.micro_batch * work.seq / layouts.context
    routed = model.top_k * EXPERT_CAPACITY if model.mixture_layers else 1.0
    stream = model.width * (1 + routed * bool(model.mixture_layers))
    scores = tokens * work.seq / layouts.context * model.heads / layouts.tensor
    return (
        number_bytes * tokens * (stream + routed * model.ffn / layouts.tensor)
        + np.where(layouts.flash, 0.0, score_bytes) * scores
    )
