"""Time of one transformer block on one device, part by part, over arrays of shapes."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from exajax.models.dimensions import ModelConfig
from exajax.simulate.formulas.shared.block_parts import FEED_FORWARD, BlockPart, parts_of
from exajax.simulate.formulas.shared.kernels import AttentionShape, bytes_s, flash_s, product_s
from exajax.simulate.formulas.shared.layouts import Floats
from exajax.simulate.formulas.shared.shard import Shard
from exajax.simulate.formulas.shared.work import ProgramTraits, Work

PARTS = ("norms", "qkv", "attention", "out", "up", "activation", "down", "experts")
"""All parts that a block may have."""

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


def block(work: Work, shard: Shard, traits: ProgramTraits) -> Block:
    """The time of one block, on average where some of them are mixtures."""
    forward_s, backward_s, products_s, kernels = {}, {}, {}, {}
    for name, part in parts_of(work, shard, traits).items():
        products = _products_s(name, part, work, shard)
        others = _others_s(part, work)
        share = _share(work.model, name)
        forward_s[name] = share * (products[0] + others[0])
        backward_s[name] = share * (products[1] + others[1])
        products_s[name] = (share * products[0], share * products[1])
        count = np.where(shard.flash & (name == "attention"), 1.0, len(part.products))
        kernels[name] = (share * (count + part.kernels[0]), share * (2 * count + part.kernels[1]))
    return Block(forward_s, backward_s, products_s, kernels)


def _products_s(name: str, part: BlockPart, work: Work, shard: Shard) -> tuple[Floats, Floats]:
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


def _others_s(part: BlockPart, work: Work) -> tuple[Floats, Floats]:
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


def _casts(part: BlockPart, precision: str, *, backward: bool) -> Floats | float:
    """Bytes of casting to fp8 what parameters are multiplied with.

    Assumed: it is read in bf16 and written twice, once for the product and once, transposed, for
    the gradient of the weight.
    """
    weights = [product for product in part.products if product.weight]
    if precision != "fp8" or not weights:
        return 0.0
    return sum(4.0 * p.batch * p.m * (p.n if backward else p.k) for p in weights)


def _fused_s(work: Work, shard: Shard) -> tuple[Floats, Floats]:
    """Seconds of fused attention, forward and backward, [U]; 0 where no shard has it."""
    if not shard.flash.any():
        nothing = np.zeros(len(shard.tokens))
        return nothing, nothing
    model = work.model
    heads = model.heads / shard.tensor
    keys = np.full_like(heads, shard.seq)
    shape = AttentionShape(
        shard.sequences, heads, shard.queries, keys, model.head_dim, model.causal
    )
    forward = flash_s(shape, work.chip, work.precision, backward=False)
    return forward, flash_s(shape, work.chip, work.precision, backward=True)
