"""What the parts of a transformer block compute and move on one device, over arrays of shapes."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from exajax.models.dimensions import ModelConfig
from exajax.simulate.formulas.shared.kernels import Product
from exajax.simulate.formulas.shared.layouts import Floats
from exajax.simulate.formulas.shared.shard import ELEMENT, Shard
from exajax.simulate.formulas.shared.work import ProgramTraits, Work

FEED_FORWARD = ("up", "activation", "down")
"""Parts of the feed-forward of a block that is no mixture."""

ORDER = ("norms", "qkv", "attention", "out", "experts", "up", "activation", "down")
"""The order in which their times are added up."""

MASK = 1.0
"""Bytes of an element of a dropout mask."""


@dataclass(frozen=True)
class BlockPart:
    """What a part of a block computes and moves for one micro-batch.

    Attributes:
        products: matrix products of the forward pass.
        forward_bytes: bytes of its other operations, shape [U].
        backward_bytes: the same of the backward pass.
        kernels: kernels of those operations, forward and backward.
    """

    products: Sequence[Product] = ()
    forward_bytes: Floats | float = 0.0
    backward_bytes: Floats | float = 0.0
    kernels: tuple[int, int] = (0, 0)


def parts_of(work: Work, shard: Shard, traits: ProgramTraits) -> dict[str, BlockPart]:
    """The parts that a block has, by name."""
    model = work.model
    mask = MASK if work.software.dropout else 0.0
    parts = {
        "norms": _norms(model, shard, mask),
        **_projections(model, shard, traits),
        "attention": _attention(model, shard, mask),
    }
    if model.mixture_share:
        parts |= {"experts": _experts(model, shard, traits)}
    if model.mixture_share < 1:
        parts |= _feed_forward(model, shard, traits)
    # Sums over the parts are taken in this order, whichever function made them.
    return {name: parts[name] for name in ORDER if name in parts}


def _dense(shard: Shard, n: Floats | float, k: Floats | float) -> Product:
    """The product of all tokens with a matrix [k, n]."""
    ones = np.ones_like(shard.tokens)
    return Product(ones, shard.tokens, n * ones, k * ones)


def _bias_bytes(model: ModelConfig, shard: Shard) -> Floats | float:
    """Bytes of a bias's gradient for each column: a sum over what was written just before, [U]."""
    return ELEMENT * shard.tokens if model.biased else 0.0


def _norms(model: ModelConfig, shard: Shard, mask: float) -> BlockPart:
    """Two norms, which read and write the stream, and two sums of it with a sublayer's result."""
    E, between = ELEMENT, shard.tokens_between * model.width
    return BlockPart(
        (),
        (2 * 2 * E + 2 * (3 * E + mask)) * between,
        (2 * 3 * E + 2 * (3 * E + 2 * E * bool(mask) + mask)) * between,
        (4, 6),
    )


def _projections(model: ModelConfig, shard: Shard, traits: ProgramTraits) -> dict[str, BlockPart]:
    """The products before and behind attention, with rotary positions or biases."""
    T, t, D, E = shard.tokens, shard.tensor, model.width, ELEMENT
    heads = model.head_dim * model.heads / t
    kv = model.head_dim * model.kv_heads / t
    rope = 0.0 if model.biased else 2 * E * (heads + kv) * T
    bias = _bias_bytes(model, shard)
    qkv: tuple[Product, ...]
    if traits.merged_products:
        qkv = (_dense(shard, heads + 2 * kv, D),)
    else:
        qkv = (_dense(shard, heads, D), _dense(shard, kv, D), _dense(shard, kv, D))
    return {
        "qkv": BlockPart(qkv, rope, rope + bias * (heads + 2 * kv), (0, 2)),
        "out": BlockPart((_dense(shard, D, heads),), 0.0, bias * D, (0, 1)),
    }


def _feed_forward(model: ModelConfig, shard: Shard, traits: ProgramTraits) -> dict[str, BlockPart]:
    """The feed-forward of a block that is no mixture."""
    T, D, F, E = shard.tokens, model.width, model.ffn / shard.tensor, ELEMENT
    bias, ups = _bias_bytes(model, shard), model.up_matrices
    up: tuple[Product, ...] = (
        (_dense(shard, ups * F, D),) if traits.merged_products else ups * (_dense(shard, F, D),)
    )
    # Arrays that the activation reads and writes, forward and backward.
    arrays = (3, 5) if model.gated else (2, 3)
    return {
        "up": BlockPart(up, 0.0, bias * ups * F, (0, 1)),
        "activation": BlockPart((), arrays[0] * E * F * T, arrays[1] * E * F * T, (1, 1)),
        "down": BlockPart((_dense(shard, D, F),), 0.0, bias * D, (0, 1)),
    }


def _attention(model: ModelConfig, shard: Shard, mask: float) -> BlockPart:
    """Attention that is not fused: scores and mix as products, and the softmax between them."""
    count = shard.sequences * model.heads / shard.tensor
    ones = np.ones_like(count)
    S, Q, H = shard.seq * ones, shard.queries, model.head_dim * ones
    scores = count * Q * S
    dropout = (2 * ELEMENT + mask) if mask else 0.0
    unfused = ~shard.flash
    return BlockPart(
        (Product(count, Q, S, H, weight=False), Product(count, Q, H, S, weight=False)),
        unfused * (2 * ELEMENT + dropout) * scores,
        unfused * (3 * ELEMENT + dropout) * scores,
        (2, 2),
    )


def _experts(model: ModelConfig, shard: Shard, traits: ProgramTraits) -> BlockPart:
    """The experts of a mixture on a device, and putting tokens into their order and back."""
    local = np.maximum(1.0, model.experts / shard.expert)
    routed = shard.tokens * model.top_k * traits.expert_capacity
    each = routed * shard.expert / model.experts
    F, D = model.ffn / shard.tensor, np.full_like(each, model.width)
    router = Product(np.ones_like(each), shard.tokens, D * 0 + model.experts, D, weight=False)
    up, down = Product(local, each, 2 * F, D), Product(local, each, D, F)
    moved = 2 * 2 * ELEMENT * routed * D
    activation = ELEMENT * F * routed
    return BlockPart((router, up, down), moved + 3 * activation, 2 * moved + 5 * activation, (5, 8))
