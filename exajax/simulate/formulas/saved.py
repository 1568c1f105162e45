"""What blocks keep for the backward pass, in bytes on one device, over arrays of layouts."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from exajax.machine.software import SoftwareProfile
from exajax.models.dimensions import ModelConfig
from exajax.recipe.recipe import REMATS
from exajax.simulate.formulas.layouts import Bools, Floats, Ints, Layouts

CAPACITY = 1.25
"""Room of an expert, over an even share (`Recipe.capacity_factor`)."""


@dataclass(frozen=True)
class Kept:
    """Bytes that a block keeps for each token and each of its numbers.

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


def of_jax(gates: int) -> Mapping[str, Kept]:
    """Returns what our models' blocks keep under XLA, by remat.

    Read in the largest buffers that `exajax simulate` lists for programs of every remat, and held
    against more in `benchmarks/engines.py`: products' results are in bf16, and what no policy says
    is kept in the type that it is computed in.

    Args:
        gates: matrices on the way up in the feed-forward.
    """
    dots = Kept(stream=4, heads=2, kv=2)
    return {
        "none": Kept(stream=28, heads=4, kv=2, ffn=12, scores=6),
        "attention": Kept(stream=28, heads=4, kv=2, ffn=12),
        "selective": Kept(stream=4, heads=2, kv=2, ffn=2 * gates),
        "save-dots-except-mlp-wi": dots,
        "save-dots-except-mlp": dots,
        "save-qkv": Kept(stream=2, heads=2, kv=2),
        "full": Kept(stream=2),
        "offload": Kept(stream=2),  # what the scan of layers carries; products' results leave
    }


def of_megatron(gates: int, dropout: bool) -> Mapping[str, Kept]:
    """Returns what a block of Megatron-LM keeps, by remat.

    Without dropout: the stream before and behind each norm, queries, keys and values, what
    attention makes of them, and both ends of the activation (arXiv:2205.05198, section 4.1); with
    it, a byte for each mask, and the scores before and behind theirs.
    """
    masks = 2.0 if dropout else 0.0
    scores = 5.0 if dropout else 2.0
    none = Kept(stream=8 + masks, heads=4, kv=2, ffn=2 * gates + 2, scores=scores)
    attention = Kept(stream=8 + masks, heads=4, kv=2, ffn=2 * gates + 2)
    return {"none": none, "attention": attention, "full": Kept(stream=2)}


TWICE = 8
"""Ways from which on XLA keeps the stream of several sequences in two orders where `tensor` divides
them, as in three of four compiled programs; none of four did with fewer."""


WIDER = {"none": 1.1, "attention": 1.1}
"""What blocks keep where they compute in fp32, over what they keep in bf16: twice as much where
results of products are all of it, and little more where most was in fp32 before."""


WITHOUT_REMAT, GATHERED = [REMATS.index("none"), REMATS.index("attention")], 12 / 28
"""Policies under which more of the stream is kept than what is gathered, and the share of that: 12
bytes of 28, in one compiled program."""


@dataclass(frozen=True)
class Saved:
    """Bytes that a block keeps of one micro-batch, by what they are of; each of shape [N].

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
        """All of them."""
        total: Floats = self.stream + self.within + self.ffn + self.scores
        return total


def of_block(
    model: ModelConfig, layouts: Layouts, seq: int, software: SoftwareProfile, precision: str
) -> Floats:
    """Returns the bytes that a block keeps of one micro-batch, shape [N]."""
    return by_part(model, layouts, seq, software, precision).total


def by_part(
    model: ModelConfig,
    layouts: Layouts,
    seq: int,
    software: SoftwareProfile,
    precision: str,
    *,
    orders: int = 2,
) -> Saved:
    """Returns what a block keeps of one micro-batch, by what it is of.

    Args:
        model: its dimensions.
        layouts: how.
        seq: tokens of a sequence.
        software: the software.
        precision: what the passes compute in.
        orders: in how many the stream is kept where XLA likes two (`in_two_orders`).
    """
    gates = 1 if model.family in ("gpt", "vit") else 2
    by_remat = dict(of_jax(gates))
    ours = software.program == "jax"
    if not ours:
        by_remat |= of_megatron(gates, software.dropout)

    def column(name: str) -> Floats:
        return np.array([getattr(by_remat[remat], name) for remat in REMATS])[layouts.remat]

    tokens, tensor = layouts.micro_batch * seq / layouts.context, layouts.tensor
    divided = layouts.sequence_parallel & (tensor > 1)
    between = tokens / np.where(divided, tensor, 1)
    between = between * np.where(ours & in_two_orders(layouts), orders, 1)
    numbers = column("heads") * model.heads + 2 * column("kv") * model.kv_heads
    feed_forward = column("ffn") * model.ffn
    if model.mixture_layers:  # only what no policy makes again is kept of experts
        routed = model.top_k * CAPACITY * model.mixture_share
        wide = np.where(np.isin(layouts.remat, WITHOUT_REMAT), routed, 0.0)
        of_experts = wide * (feed_forward + 4 * model.width * tensor)
        feed_forward = (1 - model.mixture_share) * feed_forward + of_experts
    scores = np.where(layouts.flash, 0.0, tokens * seq / layouts.context * model.heads / tensor)
    # A group of layers is checkpointed as one, and carries its stream once.
    between = between / np.where(ours & carried(layouts), model.moe_every, 1)
    wider = np.array([WIDER.get(remat, 2.0) for remat in REMATS])[layouts.remat]
    wider = wider if precision == "fp32" else np.ones(len(layouts))
    return Saved(
        stream=wider * column("stream") * model.width * between,
        within=wider * numbers * model.head_dim * tokens / tensor,
        ffn=wider * feed_forward * tokens / tensor,
        scores=wider * column("scores") * scores,
    )


def in_loop(saved: Saved, layouts: Layouts, micro_batches: Ints) -> Floats:
    """Returns what XLA keeps of a block a second time in a loop over micro-batches, shape [N].

    Read in the largest buffers of compiled programs, all with parameters that `fsdp`, or ZeRO 3,
    divides: where `tensor` divides sequences of several, the stream lies in two orders (in six of
    six programs; in wide groups it does anyway, `in_two_orders`; not in a ring, as in gpt3-6.7b on
    data=2,fsdp=2,context=4,model=4); where it does not, and two
    micro-batches are one trip of the loop, stacks of the feed-forward are kept for both (in three
    of four: the fourth needs less than this says).

    Where tensor-parallel devices all have whole sequences, what is in bf16 is kept twice: what is
    within attention (gpt2-124m on data=8,fsdp=2,model=4 and gpt3-1.3b on data=4,context=2,model=2),
    and with divided parameters the stream where no block is recomputed (the first of them; not so
    gpt3-1.3b on data=2,fsdp=2,context=2,model=2, which saves named products alone).

    In a ring that recomputes no block, as much more as half of the stacks of the feed-forward have,
    which was chosen by two programs (gpt2-124m on data=2,context=8 and on data=4,context=16).
    """
    divided, tensor = layouts.weight_shards > 1, layouts.tensor
    in_parts = divided & layouts.sequence_parallel & (layouts.micro_batch > 1) & (tensor > 1)
    stream = in_parts & (tensor < TWICE) & (micro_batches > 1) & (layouts.context == 1)
    no_remat = np.isin(layouts.remat, WITHOUT_REMAT)
    ring = (layouts.context > 1) & no_remat & ~divided & (tensor == 1) & (micro_batches > 1)
    ffn = np.where(ring, 0.5, 1.0 * (divided & (tensor == 1) & (micro_batches > 2)))
    of_stream = np.where(no_remat, GATHERED, 1.0) * saved.stream
    undivided = (tensor > 1) & ~layouts.sequence_parallel & (micro_batches > 1)
    in_bf16 = np.where(no_remat, 1 - GATHERED, 0.0) * saved.stream
    twice = undivided * (saved.within + divided * in_bf16)
    return np.where(layouts.pipe > 1, 0.0, stream * of_stream + ffn * saved.ffn + twice)


def in_two_orders(layouts: Layouts) -> Bools:
    """Returns where XLA keeps the stream in two orders, given the memory."""
    divided = layouts.sequence_parallel & (layouts.tensor >= TWICE)
    twice: Bools = divided & (layouts.micro_batch > 1)
    return twice


def carried(layouts: Layouts) -> Bools:
    """Returns where the stream is all that stays on the device."""
    return np.isin(layouts.remat, [REMATS.index("full"), REMATS.index("offload")])


def in_flight(layouts: Layouts, micro_batches: Ints, *, own_turns: bool = False) -> Floats:
    """Returns how many micro-batches a stage keeps at most what its blocks keep of, shape [N].

    GPipe keeps all of them. 1F1B keeps as many as there are stages, and with v parts of each
    (p - 1) / v more (arXiv:2205.05198, section 4.2.3); where all stages go ahead together and then
    back together, as ours do (`Schedule.in_flight`), twice as many less one.

    Args:
        layouts: how.
        micro_batches: of a step.
        own_turns: whether stages take turns of their own.
    """
    p, v = layouts.pipe, layouts.interleave
    parts = p * v + np.where(v > 1, p - 1, 0) if own_turns else 2 * p * v - 1
    most = np.where(layouts.gpipe, micro_batches, np.minimum(parts, micro_batches * v) / v)
    return np.where(p > 1, most, 1.0)
