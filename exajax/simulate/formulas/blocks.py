"""Time of one transformer block on one device, part by part, over arrays of shapes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from exajax.machine.chip import Chip
from exajax.machine.software import SoftwareProfile
from exajax.models.dimensions import ModelConfig
from exajax.simulate.formulas.kernels import Product, bytes_s, flash_s, product_s
from exajax.simulate.formulas.layouts import Bools, Floats, Layouts, distinct
from exajax.simulate.formulas.saved import CAPACITY

FEED_FORWARD = ("up", "activation", "down")
"""Parts of the feed-forward of a block that is no mixture."""

PARTS = ("norms", "qkv", "attention", "out", "up", "activation", "down", "experts")

REMADE: Mapping[str, tuple[str, ...]] = {
    "none": (),
    "attention": ("attention",),
    "selective": ("norms", "attention", "activation"),
    "save-dots-except-mlp-wi": ("norms", "attention", "up", "activation"),
    "save-dots-except-mlp": ("norms", "attention", "up", "activation", "down"),
    "save-qkv": ("norms", "attention", "out", "up", "activation", "down"),
    "full": PARTS,
    "offload": ("norms", "attention", "activation"),
}
"""Parts of a block that the backward pass makes again, by what is kept (`REMATS`)."""

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
        """Returns the shards that differ, and which of them each layout has, shape [N]."""
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
    """Seconds of a block for one micro-batch; arrays of shape [U].

    Attributes:
        forward_s: of each part, collectives not counted.
        backward_s: the same, nothing made again.
        products_s: what of `forward_s` and `backward_s` are matrix products and attention.
        kernels: that the host starts forward and backward, by part.
    """

    forward_s: Mapping[str, Floats]
    backward_s: Mapping[str, Floats]
    products_s: Mapping[str, tuple[Floats, Floats]] = field(repr=False)
    kernels: Mapping[str, tuple[Floats, Floats]] = field(repr=False)

    def remade_s(self, remat: str) -> Floats:
        """Returns the seconds of the forward parts that the backward pass makes again."""
        zero = 0 * self.forward_s["norms"]
        return sum((self.forward_s[part] for part in REMADE[remat] if part in self.forward_s), zero)

    def remade_products_s(self, remat: str) -> Floats:
        """Returns what of these are matrix products and attention."""
        zero = 0 * self.forward_s["norms"]
        parts = (part for part in REMADE[remat] if part in self.products_s)
        return sum((self.products_s[part][0] for part in parts), zero)

    def remade_kernels(self, remat: str) -> Floats:
        """Returns how many kernels they are."""
        zero = 0 * self.forward_s["norms"]
        return sum((self.kernels[part][0] for part in REMADE[remat] if part in self.kernels), zero)


@dataclass(frozen=True)
class _Part:
    products: Sequence[Product] = ()
    forward_bytes: Floats | float = 0.0
    backward_bytes: Floats | float = 0.0
    kernels: tuple[int, int] = (0, 0)


def block(
    model: ModelConfig, shard: Shard, chip: Chip, precision: str, software: SoftwareProfile
) -> Block:
    """Returns the time of one block, on average where some of them are mixtures."""
    forward_s, backward_s, products_s, kernels = {}, {}, {}, {}
    for name, part in _parts(model, shard, software).items():
        ahead = back = np.zeros(len(shard.tokens))
        if part.products:
            ahead = product_s(part.products, chip, precision)
            back = product_s([b for p in part.products for b in p.backward()], chip, precision)
        if name == "attention":
            fused = _fused_s(model, shard, chip, precision)
            ahead, back = (
                np.where(shard.flash, f, p) for f, p in zip(fused, (ahead, back), strict=True)
            )
        ahead, back = software.matmul * ahead, software.matmul * back
        moved = (
            part.forward_bytes + _casts(part, precision, 0),
            part.backward_bytes + _casts(part, precision, 1),
        )
        waits = [
            software.memory * (bytes_s(np.asarray(bytes_), chip) + count * chip.launch_s)
            for bytes_, count in zip(moved, part.kernels, strict=True)
        ]
        share = _share(model, name)
        forward_s[name] = share * (ahead + waits[0])
        backward_s[name] = share * (back + waits[1])
        products_s[name] = (share * ahead, share * back)
        count = np.where(shard.flash & (name == "attention"), 1.0, len(part.products))
        kernels[name] = (share * (count + part.kernels[0]), share * (2 * count + part.kernels[1]))
    return Block(forward_s, backward_s, products_s, kernels)


def _share(model: ModelConfig, part: str) -> float:
    """Returns the share of the blocks that have a part."""
    if part == "experts":
        return model.mixture_share
    return 1 - model.mixture_share if part in FEED_FORWARD else 1.0


def _casts(part: _Part, precision: str, backward: int) -> Floats | float:
    """Bytes of casting to fp8 what parameters are multiplied with.

    Assumed: it is read in bf16 and written twice, once for the product and once, turned around, for
    the gradient of the weight.
    """
    weights = [product for product in part.products if product.weight]
    if precision != "fp8" or not weights:
        return 0.0
    return sum(4.0 * p.batch * p.m * (p.n if backward else p.k) for p in weights)


def _parts(model: ModelConfig, shard: Shard, software: SoftwareProfile) -> dict[str, _Part]:
    biased = model.family in ("gpt", "vit")
    T, t = shard.tokens, shard.tensor
    D, F, E = model.width, model.ffn / t, ELEMENT
    mask = MASK if software.dropout else 0.0
    heads = model.head_dim * model.heads / t
    kv = model.head_dim * model.kv_heads / t
    between = shard.tokens_between * D

    def dense(n: Floats | float, k: Floats | float) -> Product:
        ones = np.ones_like(T)
        return Product(ones, T, n * ones, k * ones)

    rope = 0.0 if biased else 2 * E * (heads + kv) * T
    bias = E * T if biased else 0.0  # its gradient is a sum over what has been written just now
    gates = 1 if biased else 2
    # Ours multiply with one matrix after the other, others with all that read the same at once.
    apart = software.program == "jax"
    qkv = (dense(heads, D), dense(kv, D), dense(kv, D)) if apart else (dense(heads + 2 * kv, D),)
    up = gates * (dense(F, D),) if apart else (dense(gates * F, D),)
    parts = {
        # Two norms read and write the stream; two sums read it and a result, and write it.
        "norms": _Part(
            (),
            (2 * 2 * E + 2 * (3 * E + mask)) * between,
            (2 * 3 * E + 2 * (3 * E + 2 * E * bool(mask) + mask)) * between,
            (4, 6),
        ),
        "qkv": _Part(qkv, rope, rope + bias * (heads + 2 * kv), (0, 2)),
        "attention": _attention(model, shard, mask),
        "out": _Part((dense(D, heads),), 0.0, bias * D, (0, 1)),
    }
    if model.mixture_share:
        parts |= {"experts": _experts(model, shard, software)}
    if model.mixture_share < 1:
        acting = {1: (2, 3), 2: (3, 5)}[gates]
        parts |= {
            "up": _Part(up, 0.0, bias * gates * F, (0, 1)),
            "activation": _Part((), acting[0] * E * F * T, acting[1] * E * F * T, (1, 1)),
            "down": _Part((dense(D, F),), 0.0, bias * D, (0, 1)),
        }
    return parts


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


def _fused_s(model: ModelConfig, shard: Shard, chip: Chip, precision: str) -> tuple[Floats, Floats]:
    if not shard.flash.any():
        nothing = np.zeros(len(shard.tokens))
        return nothing, nothing
    heads = model.heads / shard.tensor
    keys = np.full_like(heads, shard.seq)
    shape = (shard.sequences, heads, shard.queries, keys, model.head_dim, model.causal)
    ahead = flash_s(*shape, chip, precision, backward=False)
    return ahead, flash_s(*shape, chip, precision, backward=True)


def _experts(model: ModelConfig, shard: Shard, software: SoftwareProfile) -> _Part:
    """The experts of a mixture that a device holds, and the way of tokens to and from them."""
    here = np.maximum(1.0, model.experts / shard.expert)
    routed = shard.tokens * model.top_k * (CAPACITY if software.program == "jax" else 1.0)
    each = routed * shard.expert / model.experts
    F, D = model.ffn / shard.tensor, np.full_like(each, model.width)
    router = Product(np.ones_like(each), shard.tokens, D * 0 + model.experts, D, weight=False)
    up, down = Product(here, each, 2 * F, D), Product(here, each, D, F)
    moved = 2 * 2 * ELEMENT * routed * D  # to the experts' order and back
    acting = ELEMENT * F * routed
    return _Part((router, up, down), moved + 3 * acting, 2 * moved + 5 * acting, (5, 8))
