"""Time of one operation on one device, and what bounds it."""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from exajax.machine.chip import Chip, Flash, Tiles
from exajax.machine.sourced_values import Curve
from exajax.program.costs import FusedAttention, MatrixProduct
from exajax.program.operations import Operation
from exajax.simulate import matmul

PRECISIONS = {
    "f8e4m3fn": "fp8",
    "f8e5m2": "fp8",
    "bf16": "bf16",
    "f16": "bf16",
    "f32": "fp32",
    "f64": "fp32",
}
"""Which of a chip's peaks an element type computes at."""

ATTENTION_ROWS = 128
"""Queries that fused attention gives one core at a time (arXiv:2407.08608, section 3.1)."""

Bound = Literal["compute", "memory", "launch"]


@dataclass(frozen=True)
class KernelPrice:
    """What an operation costs.

    Attributes:
        seconds: the time it takes.
        bound: which of its parts is the longest.
    """

    seconds: float
    bound: Bound


def operation_time_s(op: Operation, chip: Chip) -> float:
    """Returns the time of an operation, in seconds."""
    return price(op, chip).seconds


def price(op: Operation, chip: Chip) -> KernelPrice:
    """Returns the time of an operation, and what bounds it.

    The roofline of Williams et al. (2009), each roof lowered to what kernels reach: matrix
    products by their sizes (`exajax.simulate.matmul`), fused attention by its lengths, all else by
    the memory it moves, and a launch before each. Of a chip with a curve over FLOPs less is known:
    it is priced by that curve, and by the least time of an operation in place of a launch.
    """
    if op.attention and chip.attention:
        compute_s = attention_s(op.attention, op.dtype, chip, chip.attention)
    elif not op.flops:
        compute_s = 0.0
    elif isinstance(chip.matmul, Tiles):
        return _products(op, chip, chip.matmul)
    else:
        compute_s = op.flops / (_peak(op.dtype, chip) * matmul_efficiency(op.flops, chip.matmul))
    memory_s = op.bytes / (chip.memory_bandwidth * chip.memory_efficiency)
    work_s = max(compute_s, memory_s)
    tiled = isinstance(chip.matmul, Tiles)
    return KernelPrice(
        chip.launch_s + work_s if tiled else max(chip.launch_s, work_s),
        _longest(chip.launch_s, compute_s, memory_s),
    )


def _peak(dtype: str, chip: Chip) -> float:
    return chip.peak(PRECISIONS.get(dtype, "fp32"))


def _longest(launch_s: float, compute_s: float, memory_s: float) -> Bound:
    parts: dict[Bound, float] = {"launch": launch_s, "compute": compute_s, "memory": memory_s}
    return max(parts, key=lambda part: parts[part])


def matmul_efficiency(flops: float, curve: Curve) -> float:
    """Returns the fraction of the peak, linear in log(FLOPs) between the points of the curve."""
    logs = [math.log(point) for point in curve.flops]
    return float(np.interp(math.log(flops), logs, curve.fraction))


def _products(op: Operation, chip: Chip, tiles: Tiles) -> KernelPrice:
    """The products of an operation, one after the other, which share its bytes by their FLOPs."""
    products = op.products or (_cube(op.flops),)
    flops = sum(product.flops for product in products)
    what = matmul.Products.of(
        [product.batch for product in products],
        [product.m for product in products],
        [product.n for product in products],
        [product.k for product in products],
        [op.bytes * product.flops / flops for product in products],
    )
    times = matmul.times(what, tiles, _peak(op.dtype, chip), chip.memory_bandwidth)
    launches_s = (len(products) - 1) * tiles.launch_s  # one operation is launched once
    return KernelPrice(
        float(times.total.sum()) - launches_s,
        _longest(tiles.launch_s, float(times.compute.sum()), float(times.memory.sum())),
    )


def _cube(flops: float) -> MatrixProduct:
    """The product of equal sides that has so many FLOPs, for one whose sizes are not known."""
    side = max(1, round((flops / 2) ** (1 / 3)))
    return MatrixProduct(1, side, side, side)


def attention_s(what: FusedAttention, dtype: str, chip: Chip, flash: Flash) -> float:
    """Returns the time that the products of fused attention need, in seconds."""
    by_head = (flash.backward if what.backward else flash.forward)[what.causal]
    heads = sorted(by_head)
    length = math.log(what.keys)
    lengths = [math.log(at) for at in flash.lengths]
    at_heads = [float(np.interp(length, lengths, by_head[head])) for head in heads]
    fraction = float(np.interp(math.log(what.head), [math.log(head) for head in heads], at_heads))
    reached = _peak(dtype, chip) * fraction
    if isinstance(chip.matmul, Tiles):  # fewer blocks than cores leave cores without work
        blocks = what.batch * what.heads * math.ceil(what.queries / ATTENTION_ROWS)
        reached *= min(1.0, blocks / chip.matmul.cores)
    return what.flops / reached
