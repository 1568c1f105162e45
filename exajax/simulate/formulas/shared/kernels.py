"""Times of the kernels of a block on one device, over arrays of shapes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from exajax.errors import InputError
from exajax.machine.chip import Chip, Tiles
from exajax.program.costs import FusedAttention
from exajax.simulate import matmul
from exajax.simulate.formulas.shared.layouts import Bools, Floats
from exajax.simulate.kernels import attention_s

WIDTHS = {"fp32": 4.0, "bf16": 2.0, "pure-bf16": 2.0, "fp8": 1.0}
"""Bytes of a factor of a matrix product, by precision."""

DTYPES = {"fp32": "f32", "bf16": "bf16", "pure-bf16": "bf16", "fp8": "f8e4m3fn"}


@dataclass(frozen=True)
class Product:
    """A matrix product [m, k] x [k, n] of every shape, `batch` times; each of shape [U].

    Attributes:
        batch: how often it is done at once.
        m: rows of the result.
        n: columns of the result.
        k: contracted length.
        weight: whether the second factor is a parameter, which has a gradient of its own.
    """

    batch: Floats
    m: Floats
    n: Floats
    k: Floats
    weight: bool = True

    @property
    def flops(self) -> Floats:
        """Multiplications and additions, each counted."""
        return 2 * self.batch * self.m * self.n * self.k

    def backward(self) -> "tuple[Product, Product]":
        """The products that compute the gradients of the two factors."""
        return (
            Product(self.batch, self.m, self.k, self.n, self.weight),
            Product(self.batch, self.k, self.n, self.m, self.weight),
        )


def product_s(
    products: Sequence[Product], chip: Chip, precision: str, result_bytes: float = 2.0
) -> Floats:
    """Seconds of products one after the other, shape [U].

    Args:
        products: all of the same U.
        chip: the device.
        precision: of the factors with parameters; others are in bf16 where it is fp8.
        result_bytes: bytes of an element of the result, read and written.
    """
    total = np.zeros(len(products[0].m))
    for one in products:
        used = precision if one.weight or precision != "fp8" else "bf16"
        factors = WIDTHS[used] * (one.m * one.k + one.k * one.n)
        bytes_ = one.batch * (factors + result_bytes * one.m * one.n)
        if isinstance(chip.matmul, Tiles):
            what = matmul.Products(one.batch, one.m, one.n, one.k, bytes_)
            peak = chip.peak(used)
            total += matmul.times(what, chip.matmul, peak, chip.memory_bandwidth).total
        else:
            curve = chip.matmul
            reached = np.interp(np.log(one.flops), np.log(curve.flops), curve.fraction)
            compute_s = one.flops / (chip.peak(used) * reached)
            total += np.maximum(chip.launch_s, np.maximum(compute_s, bytes_s(bytes_, chip)))
    return total


def bytes_s(bytes_: Floats, chip: Chip) -> Floats:
    """Seconds of reading and writing so many bytes, launches not counted."""
    return bytes_ / (chip.memory_bandwidth * chip.memory_efficiency)


class AttentionShape(NamedTuple):
    """Attention of every shape; arrays of shape [U].

    Attributes:
        batch: sequences.
        heads: query heads.
        queries: positions of the queries.
        keys: positions of the keys.
        head: size of a head.
        causal: whether a query sees only keys before it.
    """

    batch: Floats
    heads: Floats
    queries: Floats
    keys: Floats
    head: int
    causal: Bools | bool


def flash_s(shape: AttentionShape, chip: Chip, precision: str, *, backward: bool) -> Floats:
    """Seconds of fused attention, shape [U].

    Raises:
        InputError: the chip does not say how fast it is.
    """
    if chip.attention is None:
        raise InputError(
            "cluster",
            f"nothing is known of fused attention on its chip {chip.name}",
            "add [attention] to the chip, or give `attention` unfused or `engine` compiled",
        )
    dtype = DTYPES["bf16" if precision == "fp8" else precision]
    causal = np.broadcast_to(shape.causal, shape.batch.shape)
    seconds = []
    for b, h, q, s, c in zip(*shape[:4], causal, strict=True):
        what = FusedAttention(b, h, q, s, shape.head, bool(c), backward)
        seconds.append(attention_s(what, dtype, chip, chip.attention))
    return chip.launch_s + np.array(seconds)
