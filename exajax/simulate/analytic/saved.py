"""What blocks keep for the backward pass, in bytes on one device, over arrays of layouts."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from exajax.models.presets import ModelConfig
from exajax.recipe import REMATS
from exajax.simulate.analytic.layouts import Floats, Layouts
from exajax.stack import Stack


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

    Read in the buffers of compiled programs (`benchmarks/engines.py`): products' results are in
    bf16, and what no policy says is kept in the type that it is computed in.

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
        "offload": Kept(),
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


def of_block(
    model: ModelConfig, layouts: Layouts, seq: int, stack: Stack, remat: str
) -> Floats:
    """Returns the bytes that a block keeps of one micro-batch."""
    gates = 1 if model.family in ("gpt", "vit") else 2
    ours = of_jax(gates)
    theirs = of_megatron(gates, stack.dropout) if stack.program == "megatron" else {}
    kept = theirs.get(remat, ours[remat])
    tokens, tensor = layouts.micro_batch * seq / layouts.context, layouts.tensor
    between = tokens / np.where(layouts.sequence_parallel, tensor, 1)
    ffn = 0 if model.mixture_layers else model.ffn
    scores = np.where(layouts.flash, 0.0, tokens * seq * model.heads / tensor)
    numbers = kept.heads * model.heads + 2 * kept.kv * model.kv_heads
    within = numbers * model.head_dim + kept.ffn * ffn
    return kept.stream * model.width * between + within * tokens / tensor + kept.scores * scores
