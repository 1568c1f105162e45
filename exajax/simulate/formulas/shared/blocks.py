"""Time of one transformer block on one device, part by part, over arrays of shapes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from exajax.models.dimensions import ModelConfig
from exajax.simulate.formulas.shared.kernels import Product, bytes_s, flash_s, product_s
from exajax.simulate.formulas.shared.layouts import Bools, Floats, Layouts, distinct
from exajax.simulate.formulas.shared.work import ProgramTraits, Work

FEED_FORWARD = ("up", "activation", "down")
"""Parts of the feed-forward of a block that is no mixture."""

PARTS = ("norms", "qkv", "attention", "out", "up", "activation", "down", "experts")
"""All parts that a block may have."""

ORDER = ("norms", "qkv", "attention", "out", "experts", "up", "activation", "down")
"""The order in which their times are added up."""

RECOMPUTED: Mapping[str, tuple[str, ...]] = {
    "none": (),
    "attention": ("attention",),
    "selective": ("norms", "attention", "activation"),
    "save-dots-except-mlp-wi": ("norms", "attention", "up", "activation"),
    "save-dots-except-mlp": ("norms", "attention", "up", "activation", "down"),
    "save-qkv": ("norms", "attention", "out", "up", "activation", "down"),
    "full": PARTS,
    "offload": ("norms", "attention", "activation"),
}
"""Parts of a block that the backward pass recomputes, by policy (`REMATS`)."""

ELEMENT = 2.0
"""Bytes of an activation."""

MASK = 1.0
"""Bytes of an element of a dropout mask."""


@dataclass(frozen=True)
class Shard:
    """The part of a micro-batch and of a block that one device has; arrays of shape [U].

    Attributes:
        sequences: of the micro-batch.
        seq: tokens of each.
        context: ways a sequence is divided.
        tensor: ways matrices are divided.
        expert: ways experts are divided.
        sequence_parallel: whether the sequence is divided by `tensor` between sublayers.
        flash: whether attention is fused.
    """

    sequences: Floats
    seq: int
    context: Floats
    tensor: Floats
    expert: Floats
    sequence_parallel: Bools
    flash: Bools

    @classmethod
    def distinct(cls, layouts: Layouts, seq: int) -> "tuple[Shard, np.ndarray]":
        """The shards that differ, [U], and for each layout which of them it has, shape [N]."""
        names = ("micro_batch", "context", "tensor", "expert", "sequence_parallel", "flash")
        columns = [getattr(layouts, name) for name in names]
        first, which = distinct(*columns)
        micro_batch, context, tensor, expert = (c[first].astype(float) for c in columns[:4])
        parallel, flash = (column[first] for column in columns[4:])
        return cls(micro_batch, seq, context, tensor, expert, parallel, flash), which

    @property
    def tokens(self) -> Floats:
        """Tokens of the micro-batch that a device has within a sublayer."""
        return self.sequences * self.seq / self.context

    @property
    def tokens_between(self) -> Floats:
        """Tokens that it has between sublayers."""
        return self.tokens / np.where(self.sequence_parallel, self.tensor, 1)

    @property
    def queries(self) -> Floats:
        """Positions of each sequence that a device has."""
        return self.seq / self.context


@dataclass(frozen=True)
class Block:
    """Seconds and kernels of a block for one micro-batch, by part; arrays of shape [U].

    Attributes:
        forward_s: seconds of the forward pass, collectives not counted.
        backward_s: seconds of the backward pass, without what it recomputes.
        products_s: forward and backward seconds of matrix products and attention alone.
        kernels: kernels that the host starts, forward and backward.
    """

    forward_s: Mapping[str, Floats]
    backward_s: Mapping[str, Floats]
    products_s: Mapping[str, tuple[Floats, Floats]] = field(repr=False)
    kernels: Mapping[str, tuple[Floats, Floats]] = field(repr=False)

    def recomputed_s(self, remat: str) -> Floats:
        """Seconds of the forward parts that the backward pass recomputes, shape [U]."""
        zero = 0 * self.forward_s["norms"]
        parts = (part for part in RECOMPUTED[remat] if part in self.forward_s)
        return sum((self.forward_s[part] for part in parts), zero)

    def recomputed_products_s(self, remat: str) -> Floats:
        """Seconds of matrix products and attention among them, shape [U]."""
        zero = 0 * self.forward_s["norms"]
        parts = (part for part in RECOMPUTED[remat] if part in self.products_s)
        return sum((self.products_s[part][0] for part in parts), zero)

    def recomputed_kernels(self, remat: str) -> Floats:
        """Kernels among them, shape [U]."""
        zero = 0 * self.forward_s["norms"]
        parts = (part for part in RECOMPUTED[remat] if part in self.kernels)
        return sum((self.kernels[part][0] for part in parts), zero)


@dataclass(frozen=True)
class _Part:
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


def block(work: Work, shard: Shard, traits: ProgramTraits) -> Block:
    """The time of one block, on average where some of them are mixtures."""
    forward_s, backward_s, products_s, kernels = {}, {}, {}, {}
    for name, part in _parts(work, shard, traits).items():
        products = _products_s(name, part, work, shard)
        others = _others_s(part, work)
        share = _share(work.model, name)
        forward_s[name] = share * (products[0] + others[0])
        backward_s[name] = share * (products[1] + others[1])
        products_s[name] = (share * products[0], share * products[1])
        count = np.where(shard.flash & (name == "attention"), 1.0, len(part.products))
        kernels[name] = (share * (count + part.kernels[0]), share * (2 * count + part.kernels[1]))
    return Block(forward_s, backward_s, products_s, kernels)


def _products_s(name: str, part: _Part, work: Work, shard: Shard) -> tuple[Floats, Floats]:
    """Seconds of a part's matrix products or fused attention, forward and backward, [U]."""
    chip, precision = work.chip, work.precision
    forward = backward = np.zeros(len(shard.tokens))
    if part.products:
        forward = product_s(part.products, chip, precision)
        backward = product_s([b for p in part.products for b in p.backward()], chip, precision)
    if name == "attention":
        fused = _fused_s(work, shard)
        forward = np.where(shard.flash, fused[0], forward)
        backward = np.where(shard.flash, fused[1], backward)
    return work.software.matmul * forward, work.software.matmul * backward


def _others_s(part: _Part, work: Work) -> tuple[Floats, Floats]:
    """Seconds of a part's other operations, forward and backward, [U]."""
    chip, memory = work.chip, work.software.memory
    forward = part.forward_bytes + _casts(part, work.precision, backward=False)
    backward = part.backward_bytes + _casts(part, work.precision, backward=True)
    launches = part.kernels
    return (
        memory * (bytes_s(np.asarray(forward), chip) + launches[0] * chip.launch_s),
        memory * (bytes_s(np.asarray(backward), chip) + launches[1] * chip.launch_s),
    )


def _share(model: ModelConfig, part: str) -> float:
    """Share of the blocks that have a part."""
    if part == "experts":
        return model.mixture_share
    return 1 - model.mixture_share if part in FEED_FORWARD else 1.0


def _casts(part: _Part, precision: str, *, backward: bool) -> Floats | float:
    """Bytes of casting to fp8 what parameters are multiplied with.

    Assumed: it is read in bf16 and written twice, once for the product and once, transposed, for
    the gradient of the weight.
    """
    weights = [product for product in part.products if product.weight]
    if precision != "fp8" or not weights:
        return 0.0
    return sum(4.0 * p.batch * p.m * (p.n if backward else p.k) for p in weights)


def _parts(work: Work, shard: Shard, traits: ProgramTraits) -> dict[str, _Part]:
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


def _norms(model: ModelConfig, shard: Shard, mask: float) -> _Part:
    """Two norms, which read and write the stream, and two sums of it with a sublayer's result."""
    E, between = ELEMENT, shard.tokens_between * model.width
    return _Part(
        (),
        (2 * 2 * E + 2 * (3 * E + mask)) * between,
        (2 * 3 * E + 2 * (3 * E + 2 * E * bool(mask) + mask)) * between,
        (4, 6),
    )


def _projections(model: ModelConfig, shard: Shard, traits: ProgramTraits) -> dict[str, _Part]:
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
        "qkv": _Part(qkv, rope, rope + bias * (heads + 2 * kv), (0, 2)),
        "out": _Part((_dense(shard, D, heads),), 0.0, bias * D, (0, 1)),
    }


def _feed_forward(model: ModelConfig, shard: Shard, traits: ProgramTraits) -> dict[str, _Part]:
    """The feed-forward of a block that is no mixture."""
    T, D, F, E = shard.tokens, model.width, model.ffn / shard.tensor, ELEMENT
    bias, ups = _bias_bytes(model, shard), model.up_matrices
    up: tuple[Product, ...] = (
        (_dense(shard, ups * F, D),) if traits.merged_products else ups * (_dense(shard, F, D),)
    )
    # Arrays that the activation reads and writes, forward and backward.
    arrays = (3, 5) if model.gated else (2, 3)
    return {
        "up": _Part(up, 0.0, bias * ups * F, (0, 1)),
        "activation": _Part((), arrays[0] * E * F * T, arrays[1] * E * F * T, (1, 1)),
        "down": _Part((_dense(shard, D, F),), 0.0, bias * D, (0, 1)),
    }


def _attention(model: ModelConfig, shard: Shard, mask: float) -> _Part:
    """Attention that is not fused: scores and mix as products, and the softmax between them."""
    count = shard.sequences * model.heads / shard.tensor
    ones = np.ones_like(count)
    S, Q, H = shard.seq * ones, shard.queries, model.head_dim * ones
    scores = count * Q * S
    dropout = (2 * ELEMENT + mask) if mask else 0.0
    unfused = ~shard.flash
    return _Part(
        (Product(count, Q, S, H, weight=False), Product(count, Q, H, S, weight=False)),
        unfused * (2 * ELEMENT + dropout) * scores,
        unfused * (3 * ELEMENT + dropout) * scores,
        (2, 2),
    )


def _fused_s(work: Work, shard: Shard) -> tuple[Floats, Floats]:
    """Seconds of fused attention, forward and backward, [U]; 0 where no shard has it."""
    if not shard.flash.any():
        nothing = np.zeros(len(shard.tokens))
        return nothing, nothing
    model = work.model
    heads = model.heads / shard.tensor
    keys = np.full_like(heads, shard.seq)
    shape = (shard.sequences, heads, shard.queries, keys, model.head_dim, model.causal)
    forward = flash_s(*shape, work.chip, work.precision, backward=False)
    return forward, flash_s(*shape, work.chip, work.precision, backward=True)


def _experts(model: ModelConfig, shard: Shard, traits: ProgramTraits) -> _Part:
    """The experts of a mixture on a device, and putting tokens into their order and back."""
    local = np.maximum(1.0, model.experts / shard.expert)
    routed = shard.tokens * model.top_k * traits.expert_capacity
    each = routed * shard.expert / model.experts
    F, D = model.ffn / shard.tensor, np.full_like(each, model.width)
    router = Product(np.ones_like(each), shard.tokens, D * 0 + model.experts, D, weight=False)
    up, down = Product(local, each, 2 * F, D), Product(local, each, D, F)
    moved = 2 * 2 * ELEMENT * routed * D
    activation = ELEMENT * F * routed
    return _Part((router, up, down), moved + 3 * activation, 2 * moved + 5 * activation, (5, 8))
