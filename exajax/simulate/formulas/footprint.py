"""Memory of a device at the peak of a step in every layout, by what is in it."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from exajax.machine.chip import Chip
from exajax.machine.software import SoftwareProfile
from exajax.models.dimensions import ModelConfig
from exajax.recipe.recipe import REMATS
from exajax.simulate.formulas import saved, weights
from exajax.simulate.formulas.layouts import Bools, Floats, Ints, Layouts


@dataclass(frozen=True)
class Footprint:
    """Bytes on the device that needs most of them; all of shape [N].

    Attributes:
        parameters: what is updated, and what that is computed with where both are kept.
        gradients: of the parameters, and sums of them over micro-batches.
        optimizer: its state.
        activations: what the forward pass keeps for the backward pass.
        temporaries: what passes work in, copies of parameters among them.
    """

    parameters: Floats
    gradients: Floats
    optimizer: Floats
    activations: Floats
    temporaries: Floats

    @property
    def total(self) -> Floats:
        """All of them."""
        total: Floats = sum(getattr(self, field.name) for field in dataclasses.fields(self))
        return total


def footprint(
    model: ModelConfig,
    software: SoftwareProfile,
    layouts: Layouts,
    chip: Chip | None = None,
    *,
    global_batch: int,
    seq: int,
    precision: str,
) -> Footprint:
    """Returns the memory of a step in every layout.

    Args:
        model: its dimensions.
        software: the software; what it keeps goes by its `program`.
        layouts: ways to lay it over devices.
        chip: the device whose memory XLA's scheduler may fill with what it could do without; None
            is one with room for everything.
        global_batch: sequences of a step.
        seq: tokens of each.
        precision: what the passes compute in.
    """
    micro_batches = layouts.micro_batches(global_batch)
    block = saved.by_part(model, layouts, seq, software, precision)
    if software.program == "megatron":
        return _of_megatron(model, layouts, seq, software, micro_batches, block.total)
    found = _of_jax(model, layouts, seq, software, precision, micro_batches, block)
    if chip is None or not saved.in_two_orders(layouts).any():
        return found
    # The second order of the stream is kept only where there is room for it.
    once = saved.by_part(model, layouts, seq, software, precision, orders=1)
    kept = _kept(once, np.ceil(model.layers / layouts.pipe), layouts, micro_batches)
    activations = np.where(has_room(found, chip), found.activations, kept)
    return dataclasses.replace(found, activations=activations)


ROOM, SLOP = 0.80, 0.95
"""Share of a device's memory that XLA's scheduler may fill, and share of what the step's arguments
leave of that (openxla/xla, gpu_hlo_schedule.cc, GetSchedulerMemoryLimit). A step that needs more is
scheduled again with every collective waited for at once."""


def has_room(needed: Footprint, chip: Chip) -> Bools:
    """Returns whether the scheduler has memory left."""
    arguments = needed.parameters + needed.optimizer
    left: Bools = needed.total - arguments <= SLOP * (ROOM * chip.memory_bytes - arguments)
    return left


NOTHING_AGAIN = REMATS.index("none")

LOGIT_BYTES = {"jax": 4.0, "megatron": 10.0}
"""Bytes of a logit where the loss is computed. Ours: in bf16, and its gradient. Megatron-LM: in
bf16, in fp32, and the softmax of them in fp32."""

REPEATED_LOGITS = 1.5
"""How many of those of ours a loop over micro-batches has: of two in one trip, some at once."""


def _of_jax(
    model: ModelConfig,
    layouts: Layouts,
    seq: int,
    software: SoftwareProfile,
    precision: str,
    micro_batches: np.ndarray,
    block: saved.Saved,
) -> Footprint:
    """Returns what XLA keeps for our step, by hand from the buffers of compiled programs.

    Held against more of them in `benchmarks/engines.py`.

    Masters and moments are in fp32, copies to compute with and gradients of a micro-batch in bf16.
    The peak is where the loss is computed, within the backward pass, or where ZeRO 1 and 2 gather
    what they have updated.
    """
    held = weights.of_stage(model, layouts)
    wide = 2.0 if precision == "pure-bf16" else 4.0
    narrow = 4.0 if precision == "fp32" else 2.0
    mine = weights.share(held, layouts, "parameters")
    copy = mine * narrow if wide != narrow else 0 * mine
    blocks, piped = np.ceil(model.layers / layouts.pipe), layouts.pipe > 1
    repeated = (micro_batches > 1) | piped
    # The sums of a loop over micro-batches are as large as what each replica computes with.
    sums = np.where(repeated, 4 * mine, 0)
    current = narrow * np.where(repeated, mine, weights.share(held, layouts, "gradients"))
    # The loop of a pipeline copies the sum of the largest matrix of its blocks, and has its
    # gradient in fp32 besides: with both, 14 compiled pipelines are at -4% to +9%.
    largest = blocks * model.width * model.ffn * max(1, model.experts) / layouts.tensor
    sums += np.where(piped, 8 * largest / layouts.fsdp / layouts.expert, 0)
    kept = _kept(block, blocks, layouts, micro_batches)
    logits = narrow / 2 * LOGIT_BYTES["jax"] * _logits(model, layouts, seq)
    logits = np.where(repeated, REPEATED_LOGITS, 1.0) * logits
    # What fsdp divides of the logits' matrix is gathered, and its gradient is whole at first.
    table = narrow * model.width * model.padded_vocab / layouts.tensor
    divided = held[2].count > weights.share(held[2:], layouts, "parameters")
    logits = logits + np.where(divided, 2 * table, 0.0)
    work = narrow / 2 * _work(model, layouts, seq) + current
    if model.moe_every > 1:
        work = work + _of_group(model, layouts, seq, software, precision)
    levels = (layouts.zero == 1) | (layouts.zero == 2)
    updated = np.where(levels & (layouts.data > 1), 4 * mine, 0) - copy - kept
    gathered = _gathered(held[:2], model, layouts, narrow / blocks)
    return Footprint(
        parameters=wide * mine,
        gradients=sums,
        optimizer=2 * wide * weights.share(held, layouts, "optimizer"),
        activations=kept,
        temporaries=copy + gathered + np.maximum(np.maximum(logits, work), updated),
    )


def _kept(block: saved.Saved, blocks: Floats, layouts: Layouts, micro_batches: Ints) -> Floats:
    """Returns what all blocks of a stage keep.

    In a pipeline, what a forward turn makes is on its way into the stacks while a backward turn
    has taken its own out: one part of a stage more than the schedule has in flight.
    """
    in_flight = saved.in_flight(layouts, micro_batches)
    in_flight = in_flight + np.where(layouts.pipe > 1, 1 / layouts.interleave, 0.0)
    of_a_micro_batch = block.total + saved.in_loop(block, layouts, micro_batches)
    return of_a_micro_batch * blocks * in_flight


def _gathered(
    held: Sequence[weights.Weights], model: ModelConfig, layouts: Layouts, size: Floats
) -> Floats:
    """Returns what is gathered of divided parameters: those of two blocks, or groups of them.

    Args:
        held: parameters of the blocks of a stage.
        model: says how many layers are a group.
        layouts: how.
        size: bytes of a number, over the blocks of the stage.
    """
    whole: Floats = np.sum([one.count for one in held], axis=0)
    divided = whole > weights.share(held, layouts, "parameters")
    return np.where(divided, 2.0 * model.moe_every * size * whole, 0.0)


def _of_group(
    model: ModelConfig, layouts: Layouts, seq: int, software: SoftwareProfile, precision: str
) -> Floats:
    """Returns what the other layers of a group keep while it is made again as one."""
    everything = dataclasses.replace(layouts, remat=np.full_like(layouts.remat, NOTHING_AGAIN))
    again = saved.of_block(model, everything, seq, software, precision)
    return (model.moe_every - 1) * np.where(saved.carried(layouts), again, 0.0)


def _work(model: ModelConfig, layouts: Layouts, seq: int) -> Floats:
    """Returns the bytes that the backward pass of a block works in.

    Counted in compiled programs: about six arrays as large as the stream and six as what is
    between the matrices of the feed-forward, in bf16; three of scores in fp32.
    """
    tokens = layouts.micro_batch * seq / layouts.context
    routed = model.top_k * saved.CAPACITY if model.mixture_layers else 1.0
    stream = model.width * (1 + routed * bool(model.mixture_layers))
    scores = tokens * seq / layouts.context * model.heads / layouts.tensor
    return (
        12 * tokens * (stream + routed * model.ffn / layouts.tensor)
        + np.where(layouts.flash, 0.0, 12.0) * scores
    )


def _logits(model: ModelConfig, layouts: Layouts, seq: int) -> Floats:
    rows = layouts.micro_batch * (1 if model.family == "vit" else seq / layouts.context)
    logits: Floats = rows * model.padded_vocab / layouts.tensor
    return logits


def _of_megatron(
    model: ModelConfig,
    layouts: Layouts,
    seq: int,
    software: SoftwareProfile,
    micro_batches: np.ndarray,
    block: Floats,
) -> Footprint:
    """Returns what Megatron-LM keeps: 18 bytes a parameter, and activations of arXiv:2205.05198.

    Weights in 16 bits, gradients in fp32; the optimizer has masters and two moments in fp32. Of a
    pipeline, the first stage keeps most micro-batches and the last one computes the loss: the one
    that needs more counts. What passes work in was chosen by the peaks that SimuMax's authors
    measured on B200 (v1.2, docs/b200): the largest gradients of matrices, or the loss.
    """
    held = weights.of_stage(
        model, layouts, tables=np.where((layouts.pipe > 1) & (model.family != "gpt"), 0.5, 1.0)
    )

    # The distributed optimizer divides over context as well, whose devices are replicas too.
    replicas = dataclasses.replace(layouts, data=layouts.data * layouts.context)

    def share(kind: str) -> Floats:
        return weights.share(held, replicas, kind, flat=True)

    blocks = np.ceil(model.layers / layouts.pipe)
    gates = 1 if model.family in ("gpt", "vit") else 2
    inner = model.ffn / layouts.tensor
    tokens = layouts.micro_batch * seq / layouts.context
    # The gradient of the way up in fp32 before it is added to the sums, and what it is made of.
    work = 4 * gates * model.width * inner + 2 * tokens * (gates + 1) * inner
    table = 2.0 * model.width * model.padded_vocab / layouts.tensor
    logits = LOGIT_BYTES["megatron"] * _logits(model, layouts, seq)
    first = block * blocks * saved.in_flight(layouts, micro_batches, own_turns=True)
    last, at_end = block * blocks, np.maximum(logits, work + table)
    loss = (layouts.pipe == 1) | (last + at_end > first + work)
    return Footprint(
        parameters=2.0 * share("parameters"),
        gradients=software.gradient_bytes * share("gradients"),
        optimizer=12.0 * share("optimizer"),
        activations=np.where(loss, last, first),
        temporaries=np.where(loss, at_end, work),
    )
