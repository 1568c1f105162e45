"""Memory of a device at the peak of a step in every layout, by what is in it."""

import dataclasses
from dataclasses import dataclass

import numpy as np

from exajax.models.presets import ModelConfig
from exajax.recipe import REMATS
from exajax.simulate.analytic import saved, weights
from exajax.simulate.analytic.blocks import REMADE
from exajax.simulate.analytic.layouts import Floats, Layouts
from exajax.stack import Stack


@dataclass(frozen=True)
class Footprint:
    """Bytes on the device that needs most of them; all of shape [N].

    Attributes:
        parameters: what is updated.
        gradients: of the parameters, and sums of them over micro-batches.
        optimizer: its state.
        activations: what the forward pass keeps for the backward pass.
        temporaries: copies of parameters to compute with, and what passes work in.
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
    stack: Stack,
    layouts: Layouts,
    *,
    global_batch: int,
    seq: int,
    precision: str,
) -> Footprint:
    """Returns the memory of a step in every layout.

    Args:
        model: its dimensions.
        stack: the software; its `program` says what is kept.
        layouts: ways to lay it over devices.
        global_batch: sequences of a step.
        seq: tokens of each.
        precision: what the passes compute in.
    """
    micro_batches = layouts.micro_batches(global_batch)
    block = np.zeros(len(layouts))
    for index in np.unique(layouts.remat):
        kept = saved.of_block(model, layouts, seq, stack, REMATS[index])
        block = np.where(layouts.remat == index, kept, block)
    of = _of_megatron if stack.program == "megatron" else _of_jax
    return of(model, layouts, seq, stack, precision, micro_batches, block)


def _of_jax(model, layouts, seq, stack, precision, micro_batches, block):
    held = weights.of_stage(model, layouts)

    def share(kind):
        return sum(one.shares(layouts, kind, flat=False) for one in held)

    wide = 2.0 if precision == "pure-bf16" else 4.0
    narrow = 4.0 if precision == "fp32" else 2.0
    mine, moments = share("parameters"), share("optimizer")
    copy = mine * (narrow if wide != narrow else 0)
    blocks = np.ceil(model.layers / layouts.pipe)
    piped = layouts.pipe > 1
    repeated = (micro_batches > 1) | piped
    accumulated = np.where(repeated, 4 * mine, 0)
    current = narrow * np.where(repeated, mine, share("gradients"))
    parts = layouts.pipe * layouts.interleave
    in_flight = np.minimum(2 * parts - 1, micro_batches * layouts.interleave)
    in_flight = np.where(layouts.gpipe, micro_batches, in_flight)
    in_flight = np.where(piped, in_flight / layouts.interleave, 1)
    kept = block * blocks * in_flight

    T, t = layouts.micro_batch * seq / layouts.context, layouts.tensor
    rows = layouts.micro_batch if model.family == "vit" else T
    logits = rows * model.padded_vocab / t
    whole = (held[0].count + held[1].count) / blocks
    sharded = (held[0].count + held[1].count) / sum(o.shares(layouts, "parameters", flat=False) for o in held[:2])
    gathered = np.where(sharded > 1, 2 * narrow * whole, 0)
    F = model.top_k * 1.25 * model.ffn if model.mixture_layers else model.ffn
    D = model.width * (1 + (model.top_k * 1.25 if model.mixture_layers else 0))
    work = 2 * T * (6 * D + 6 * F / t)
    work = work + np.where(layouts.flash, 0, 12 * T * seq * model.heads / t)
    update = np.where((layouts.zero > 0) & (layouts.zero < 3) & (layouts.data > 1), 4 * mine, 0)
    ahead = kept + 5 * logits
    back = kept + current + work
    behind = update - copy
    peak = np.maximum(np.maximum(ahead, back), behind)
    return Footprint(
        wide * mine, accumulated, 2 * wide * moments, kept, copy + gathered + peak - kept
    )
