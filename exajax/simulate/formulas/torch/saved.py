"""What blocks of Megatron-LM save for the backward pass."""

from exajax.simulate.formulas.shared.layouts import Layouts
from exajax.simulate.formulas.shared.saved import (
    ByPolicy,
    Copies,
    Saved,
    SavedPerToken,
    saved_by_part,
)
from exajax.simulate.formulas.shared.work import Work
from exajax.simulate.formulas.xla.figures import EXPERT_CAPACITY
from exajax.simulate.formulas.xla.saved import precision_ratio
from exajax.simulate.formulas.xla.saved import saved_per_token as saved_by_xla


def saved_per_token(up_matrices: int, dropout: bool) -> ByPolicy:
    """Bytes that a block saves for each token and number, by policy.

    Without dropout: the stream before and behind each norm, queries, keys and values, what
    attention makes of them, and both ends of the activation (arXiv:2205.05198, section 4.1); with
    it, a byte for each mask, and the scores before and behind theirs. A policy that Megatron-LM
    does not have saves what it saves under XLA.

    Args:
        up_matrices: matrices on the way up in the feed-forward.
        dropout: whether blocks drop elements.
    """
    masks, scores = (2.0, 5.0) if dropout else (0.0, 2.0)
    stream, ffn = 8 + masks, 2 * up_matrices + 2
    return {
        **saved_by_xla(up_matrices),
        "none": SavedPerToken(stream=stream, heads=4, kv=2, ffn=ffn, scores=scores),
        "attention": SavedPerToken(stream=stream, heads=4, kv=2, ffn=ffn),
        "full": SavedPerToken(stream=2),
    }


def saved_by_block(work: Work, layouts: Layouts) -> Saved:
    """Bytes that a block saves of one micro-batch, by what they are of."""
    return saved_by_part(
        work.model,
        layouts,
        work.seq,
        saved_per_token(work.model.up_matrices, work.software.dropout),
        expert_capacity=EXPERT_CAPACITY,
        copies=Copies(precision=precision_ratio(layouts, work.precision)),
    )
