"""What blocks save for the backward pass, in bytes on one device, over arrays of layouts."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from exajax.models.dimensions import ModelConfig
from exajax.recipe.recipe import REMATS
from exajax.simulate.formulas.shared.layouts import Floats, Ints, Layouts

RECOMPUTES_LITTLE = ("none", "attention")
"""Policies that save what the others recompute."""

WITHOUT_REMAT = [REMATS.index(remat) for remat in RECOMPUTES_LITTLE]


@dataclass(frozen=True)
class SavedPerToken:
    """Bytes that a block saves for each token and each of its numbers.

    Attributes:
        stream: for each number of the residual stream, divided where `tensor` divides sequences.
        heads: for each number of the queries.
        kv: for each number of the keys, and of the values.
        ffn: for each number between the matrices of the feed-forward.
        scores: for each score of attention that is not fused.
    """

    stream: float = 0.0
    heads: float = 0.0
    kv: float = 0.0
    ffn: float = 0.0
    scores: float = 0.0


ByPolicy = Mapping[str, SavedPerToken]
"""What a program saves, by what it recomputes (`REMATS`)."""


@dataclass(frozen=True)
class Saved:
    """Bytes that a block saves of one micro-batch, by what they are of; each of shape [N].

    Attributes:
        stream: the residual stream between sublayers.
        within: queries, keys, values, and what attention mixes of them.
        ffn: between the matrices of the feed-forward.
        scores: of attention that is not fused.
    """

    stream: Floats
    within: Floats
    ffn: Floats
    scores: Floats

    @property
    def total(self) -> Floats:
        """All of them, shape [N]."""
        total: Floats = self.stream + self.within + self.ffn + self.scores
        return total


@dataclass(frozen=True)
class Copies:
    """How often what a block saves is there, over once in bf16; each of shape [N] or 1.

    Attributes:
        stream_orders: orders of dimensions that the stream is saved in.
        stream_groups: blocks that share one stream.
        precision: bytes over those of bf16.
    """

    stream_orders: Ints | int = 1
    stream_groups: Ints | int = 1
    precision: Floats | float = 1.0


def saved_by_part(
    model: ModelConfig,
    layouts: Layouts,
    seq: int,
    by_policy: ByPolicy,
    *,
    expert_capacity: float,
    copies: Copies = Copies(),
) -> Saved:
    """Bytes that a block saves of one micro-batch, by what they are of.

    Args:
        model: dimensions of the model.
        layouts: the layouts.
        seq: tokens of a sequence.
        by_policy: what the program saves.
        expert_capacity: slots of an expert over an even share of the tokens.
        copies: how often it is saved.
    """

    def column(name: str) -> Floats:
        return np.array([getattr(by_policy[remat], name) for remat in REMATS])[layouts.remat]

    tokens, tensor = layouts.micro_batch * seq / layouts.context, layouts.tensor
    divided = layouts.sequence_parallel & (tensor > 1)
    between = tokens / np.where(divided, tensor, 1) * copies.stream_orders
    numbers = column("heads") * model.heads + 2 * column("kv") * model.kv_heads
    feed_forward = column("ffn") * model.ffn
    if model.mixture_layers:  # of experts only what no policy recomputes is saved
        routed = model.top_k * expert_capacity * model.mixture_share
        slots = np.where(np.isin(layouts.remat, WITHOUT_REMAT), routed, 0.0)
        of_experts = slots * (feed_forward + 4 * model.width * tensor)
        feed_forward = (1 - model.mixture_share) * feed_forward + of_experts
    scores = np.where(layouts.flash, 0.0, tokens * seq / layouts.context * model.heads / tensor)
    between = between / copies.stream_groups
    each = copies.precision
    return Saved(
        stream=each * column("stream") * model.width * between,
        within=each * numbers * model.head_dim * tokens / tensor,
        ffn=each * feed_forward * tokens / tensor,
        scores=each * column("scores") * scores,
    )


def logits(model: ModelConfig, layouts: Layouts, seq: int) -> Floats:
    """Logits of a micro-batch on one device, shape [N]; an image has one row of them."""
    rows = layouts.micro_batch * (seq / layouts.context if model.is_text else 1)
    count: Floats = rows * model.padded_vocab / layouts.tensor
    return count


def in_flight(layouts: Layouts, micro_batches: Ints, *, stages_alternate: bool = False) -> Floats:
    """Most micro-batches in flight on a stage, which it has saved activations of, shape [N].

    GPipe has all of them. 1F1B has as many as there are stages, and with v parts of each
    (p - 1) / v more (arXiv:2205.05198, section 4.2.3); where all stages go forward together and
    then backward together, as ours do (`spmd.pipeline_schedule`), twice as many less one.

    Args:
        layouts: the layouts.
        micro_batches: micro-batches of a step, shape [N].
        stages_alternate: whether each stage alternates between forward and backward on its own.
    """
    p, v = layouts.pipe, layouts.interleave
    parts = p * v + np.where(v > 1, p - 1, 0) if stages_alternate else 2 * p * v - 1
    most = np.where(layouts.gpipe, micro_batches, np.minimum(parts, micro_batches * v) / v)
    return np.where(p > 1, most, 1.0)
