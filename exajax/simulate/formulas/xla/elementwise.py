"""Bytes that XLA's program of exajax's step moves besides those of products and attention.

A pass over the layers is a loop there: it slices each layer's parameters out of those of all
layers, and writes what it saves, and gradients, into arrays that were filled with zeros before.
How the rest is fused is the compiler's decision: those bytes are read in compiled programs.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from exajax.machine.chip import Chip
from exajax.models.dimensions import ModelConfig
from exajax.recipe.recipe import REMATS
from exajax.simulate.formulas.shared.layouts import Bools, Floats, Layouts
from exajax.simulate.formulas.shared.weights import block_parameters
from exajax.simulate.formulas.shared.work import Work
from exajax.simulate.formulas.xla import saved
from exajax.simulate.formulas.xla.figures import EXPERT_CAPACITY, PassBytes, xla_figures
from exajax.simulate.formulas.xla.stage import StageParameters

SAME_PROGRAM = {"attention": "none", "save-dots-except-mlp-wi": "save-dots-except-mlp"}
"""Policies that compile to the program of another one."""

TRANSPOSITION_BYTES = 4.0
"""Bytes of transposing a number in bf16: it is read and written."""


def ring_pairs(layouts: Layouts) -> Floats:
    """Pairs of chunks that a device of a ring works on, [N]: 3 of its own, 2 of each other's.

    A sequence has two chunks for each device (`exajax.models.attention`).
    """
    return 2.0 * layouts.context.astype(np.float64) + 1


def unfused_scores(model: ModelConfig, layouts: Layouts, seq: int) -> Floats:
    """Scores of a block and micro-batch on a device, [N]; 0 where attention is fused.

    Of a ring each device has its own queries and all keys, and leaves out what is masked.
    """
    ways = layouts.context
    chunk = seq / (2 * ways)
    a_head = np.where(ways > 1, ring_pairs(layouts) * chunk**2, (seq / ways) * seq)
    all_heads = layouts.micro_batch * a_head * model.heads / layouts.tensor
    return np.where(layouts.flash, 0.0, all_heads)


def of_ring(model: ModelConfig, layouts: Layouts, seq: int) -> tuple[Floats, Floats]:
    """Bytes that a ring moves in a block, forward and backward, [N]; 0 without one.

    Policies but `none` recompute its scores.
    """
    figures, ways = xla_figures().elementwise, layouts.context
    queries = layouts.micro_batch * seq / ways * model.heads * model.head_dim / layouts.tensor
    scores = unfused_scores(model, layouts, seq)
    forward, backward = (
        figures.ring_scores[side] * scores + figures.ring_queries[side] * ways * queries
        for side in (0, 1)
    )
    recomputed = np.where(layouts.remat == REMATS.index("none"), 0.0, forward)
    alone = ways == 1
    return np.where(alone, 0.0, forward), np.where(alone, 0.0, backward + recomputed)


def of_block(work: Work, layouts: Layouts) -> tuple[Floats, Floats]:
    """Bytes of activations that a forward and a backward pass move in a block, [N].

    What a stage of a pipeline saves is put among that of other micro-batches and taken out again.
    """
    model, figures = work.model, xla_figures().elementwise
    T = layouts.micro_batch * work.seq / layouts.context
    mixture = model.mixture_share * model.top_k * EXPERT_CAPACITY
    numbers = _numbers(work, layouts, T, mixture)
    piped = np.where(layouts.pipe > 1, saved.saved_by_block(work, layouts).total, 0.0)
    slots = T * mixture * model.width
    ring = of_ring(model, layouts, work.seq)
    transposed, casts = _transposed(model, layouts, T), _casts(work, layouts, T)
    forward, backward = (
        np.sum(coefficients[layouts.remat].T * numbers, axis=0)
        + figures.routed[side] * slots
        + figures.pipeline_saved[side] * piped
        + transposed[side]
        + casts[side]
        + ring[side]
        for side, coefficients in enumerate(_coefficients(model, work.chip))
    )
    return forward, backward


def _numbers(work: Work, layouts: Layouts, tokens: Floats, mixture: float) -> Floats:
    """Numbers that the coefficients of `PassBytes` are for, [4, N].

    Args:
        work: the step.
        layouts: the layouts.
        tokens: tokens of a micro-batch on a device, [N].
        mixture: slots of experts for each token, averaged over the blocks.
    """
    model, t = work.model, layouts.tensor
    between = tokens / np.where(layouts.sequence_parallel, t, 1)
    kv = (model.heads + 2 * model.kv_heads) * model.head_dim / t
    routed = mixture + 1 - model.mixture_share
    feed_forward = tokens * routed * model.ffn / t
    ring = layouts.context > 1
    scores = np.where(ring, 0.0, unfused_scores(model, layouts, work.seq))
    return np.stack([between * model.width, tokens * kv, feed_forward, scores])


def _casts(work: Work, layouts: Layouts, tokens: Floats) -> tuple[Floats | float, Floats | float]:
    """Bytes of casts to fp8 in a block: of factors of products, of gradients, of parameters."""
    if work.precision != "fp8":
        return 0.0, 0.0
    model, (of_factor, of_gradient) = work.model, xla_figures().elementwise.fp8_casts
    t, D, F = layouts.tensor, model.width, model.ffn / layouts.tensor
    heads = model.heads * model.head_dim / t
    kv = 2 * model.kv_heads * model.head_dim / t
    parameters = of_factor * block_parameters(model, layouts)
    forward = of_factor * tokens * (2 * D + heads + F) + parameters
    gradients = heads + kv + 2 * D + model.up_matrices * F
    return forward, of_gradient * tokens * gradients + parameters


def _coefficients(model: ModelConfig, chip: Chip) -> tuple[Floats, Floats]:
    """The coefficients of `PassBytes` by policy, [R, 4], forward and backward."""
    rows = [_pass_bytes(model, chip)[SAME_PROGRAM.get(remat, remat)] for remat in REMATS]
    return np.array([row.forward for row in rows]), np.array([row.backward for row in rows])


def _pass_bytes(model: ModelConfig, chip: Chip) -> Mapping[str, PassBytes]:
    """The table of a chip and a feed-forward; CUDA GPUs compute in bf16 from capability 9.0 on."""
    tables = xla_figures().elementwise.block
    if chip.xla_target.get("compute_capability", (9, 0))[0] >= 9:
        return tables.bf16_gated if model.gated else tables.bf16_plain
    return tables.fp32_gated if model.gated else tables.fp32_plain


def _transposed(model: ModelConfig, layouts: Layouts, tokens: Floats) -> tuple[Floats, Floats]:
    """Bytes of transposing what is gathered and scattered within a block, forward and backward.

    A collective divides the first dimension of an array. Sequences are the second of a micro-batch
    of several, so each result is transposed before or behind it.
    """
    figures = xla_figures().elementwise
    forward_count, backward_count = figures.transposed_activations
    numbers = tokens * model.width
    divided = layouts.sequence_parallel & (layouts.tensor > 1)
    several = divided & (layouts.micro_batch > 1)
    full = layouts.remat == REMATS.index("full")
    count = backward_count + np.where(full, figures.transposed_recomputed, 0)
    forward = np.where(several, forward_count * TRANSPOSITION_BYTES, 0.0)
    backward = np.where(several, count * TRANSPOSITION_BYTES, 0.0)
    backward = backward + np.where(divided, figures.sum_of_gradients, 0.0)
    return forward * numbers, backward * numbers


@dataclass(frozen=True)
class ParameterBytes:
    """Bytes that parameters cost besides products and the update; of shape [N].

    Attributes:
        block: in every block and micro-batch, forward and backward.
        ends: outside of blocks, in every micro-batch.
        step: once in a step, for all that a device has.
    """

    block: tuple[Floats, Floats]
    ends: Floats
    step: Floats


def of_parameters(
    stage: StageParameters, layouts: Layouts, several: Bools, precision: str
) -> ParameterBytes:
    """Bytes of slicing, transposing, casting and adding up parameters and gradients.

    Where a layer's gradients are added up over replicas in one collective, they are joined; a ring
    does so with every micro-batch, and with those of tables too.

    Args:
        stage: parameters of a stage.
        layouts: the layouts.
        several: whether gradients are sums over micro-batches, shape [N].
        precision: what the passes compute in.
    """
    figures = xla_figures().parameters
    local: Floats = np.sum(stage.local[:-1], axis=0) / stage.blocks
    undivided: Floats = np.sum([part.count for part in stage.parts[:-1]], axis=0) / stage.blocks
    ends = stage.local[-1]
    replicas = np.where(layouts.zero < 3, layouts.data, 1) > 1
    ring = layouts.context > 1
    joins = ring | (replicas & ~several & (layouts.zero < 2))
    joined = np.where(joins, figures.joined, 0.0)
    accumulated = np.where(several, figures.accumulated, 0.0)
    zeros = np.where(layouts.pipe > 1, figures.pipeline_zeros, 0.0)
    added = accumulated + zeros
    cast = 0.0 if precision in ("fp32", "pure-bf16") else figures.cast_once
    sums = figures.sums_once + figures.means_once * replicas
    once = cast + np.where(several, sums, 0.0)
    gathers = replicas & (layouts.zero >= 1)
    once = once + np.where(gathers, figures.gathered_once, 0.0)
    transposed = figures.transposed * undivided
    forward, backward = figures.sliced
    return ParameterBytes(
        (forward * local + transposed, (backward + joined + added) * local + transposed),
        (accumulated + np.where(ring, figures.joined, 0.0)) * ends,
        once * (local * stage.blocks + ends),
    )
