"""What blocks of exajax's models save for the backward pass under XLA, over arrays of layouts."""

import numpy as np

from exajax.recipe.recipe import REMATS
from exajax.simulate.formulas.shared.layouts import Bools, Floats, Ints, Layouts
from exajax.simulate.formulas.shared.saved import (
    RECOMPUTES_LITTLE,
    WITHOUT_REMAT,
    ByPolicy,
    Copies,
    Saved,
    SavedPerToken,
    saved_by_part,
)
from exajax.simulate.formulas.shared.work import Work
from exajax.simulate.formulas.xla.figures import EXPERT_CAPACITY, xla_figures

NO_POLICY = SavedPerToken(stream=28, heads=4, kv=2, ffn=12, scores=6)
"""What is saved where nothing is recomputed; see `saved_per_token`."""


def saved_per_token(up_matrices: int) -> ByPolicy:
    """Bytes that a block saves for each token and number, by policy.

    Read in the largest buffers that `exajax simulate` lists for programs of every policy, and
    compared with more of them by `benchmarks/engines.py`: results of products are in bf16, and what
    no policy names is saved in the type that it is computed in.

    Args:
        up_matrices: matrices on the way up in the feed-forward.
    """
    dots = SavedPerToken(stream=4, heads=2, kv=2)
    return {
        "none": NO_POLICY,
        "attention": SavedPerToken(stream=28, heads=4, kv=2, ffn=12),
        "selective": SavedPerToken(stream=4, heads=2, kv=2, ffn=2 * up_matrices),
        "save-dots-except-mlp-wi": dots,
        "save-dots-except-mlp": dots,
        "save-qkv": SavedPerToken(stream=2, heads=2, kv=2),
        "full": SavedPerToken(stream=2),
        "offload": SavedPerToken(stream=2),  # the scan's carry; results of products leave
    }


def saved_by_block(work: Work, layouts: Layouts, *, two_orders: bool = True) -> Saved:
    """Bytes that a block saves of one micro-batch, by what they are of.

    Args:
        work: the step.
        layouts: the layouts.
        two_orders: whether the stream is saved in two orders where XLA prefers that.
    """
    model = work.model
    orders = np.where(in_two_orders(layouts), 2 if two_orders else 1, 1)
    # A group of layers is checkpointed as one, and carries its stream once.
    groups = np.where(saves_stream_alone(layouts), model.moe_every, 1)
    return saved_by_part(
        model,
        layouts,
        work.seq,
        saved_per_token(model.up_matrices),
        expert_capacity=EXPERT_CAPACITY,
        copies=Copies(orders, groups, precision_ratio(layouts, work.precision)),
    )


def precision_ratio(layouts: Layouts, precision: str) -> Floats | float:
    """Saved bytes over those of bf16, shape [N] or 1."""
    if precision != "fp32":
        return 1.0
    little, much = xla_figures().saved.fp32
    ratios = [little if remat in RECOMPUTES_LITTLE else much for remat in REMATS]
    return np.array(ratios)[layouts.remat]


def saved_twice_in_loop(saved: Saved, layouts: Layouts, micro_batches: Ints) -> Floats:
    """Bytes of a block that XLA saves a second time in a loop over micro-batches, shape [N].

    Read in the largest buffers of compiled programs, all with parameters that `fsdp`, or ZeRO 3,
    divides: where `tensor` divides sequences of several, the stream lies in two orders (in six of
    six programs; in wide groups it does anyway, `in_two_orders`; not in a ring, as in gpt3-6.7b on
    data=2,fsdp=2,context=4,model=4); where it does not, and two micro-batches are one trip of the
    loop, arrays of the feed-forward are saved for both (in three of four: the fourth needs less
    than this says).

    Where tensor-parallel devices all have whole sequences, what is in bf16 is saved twice: what is
    within attention (gpt2-124m on data=8,fsdp=2,model=4 and gpt3-1.3b on data=4,context=2,model=2),
    and with divided parameters the stream where no block is recomputed (the first of them; not so
    gpt3-1.3b on data=2,fsdp=2,context=2,model=2, which saves named products alone).

    In a ring that recomputes no block, arrays of the feed-forward once more by a part of them.
    """
    figures = xla_figures().saved
    divided, tensor = layouts.weight_shards > 1, layouts.tensor
    in_parts = divided & layouts.sequence_parallel & (layouts.micro_batch > 1) & (tensor > 1)
    narrow = tensor < figures.two_orders_ways
    stream = in_parts & narrow & (micro_batches > 1) & (layouts.context == 1)
    no_remat = np.isin(layouts.remat, WITHOUT_REMAT)
    ring = (layouts.context > 1) & no_remat & ~divided & (tensor == 1) & (micro_batches > 1)
    in_pairs = 1.0 * (divided & (tensor == 1) & (micro_batches > 2))
    ffn = np.where(ring, figures.ring_loop, in_pairs)
    gathered = figures.gathered_stream / NO_POLICY.stream
    of_stream = np.where(no_remat, gathered, 1.0) * saved.stream
    undivided = (tensor > 1) & ~layouts.sequence_parallel & (micro_batches > 1)
    in_bf16 = np.where(no_remat, 1 - gathered, 0.0) * saved.stream
    twice = undivided * (saved.within + divided * in_bf16)
    return np.where(layouts.pipe > 1, 0.0, stream * of_stream + ffn * saved.ffn + twice)


def in_two_orders(layouts: Layouts) -> Bools:
    """Where XLA saves the stream in two orders, given the memory, shape [N]."""
    divided = layouts.sequence_parallel & (layouts.tensor >= xla_figures().saved.two_orders_ways)
    twice: Bools = divided & (layouts.micro_batch > 1)
    return twice


def saves_stream_alone(layouts: Layouts) -> Bools:
    """Where the residual stream is all that a block leaves on the device, shape [N]."""
    return np.isin(layouts.remat, [REMATS.index("full"), REMATS.index("offload")])
