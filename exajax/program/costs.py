"""The arithmetic of one instruction: matrix products, fused attention, or only memory traffic."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from exajax.program.hlo import Computation, Instruction, Module

MEMORY_OPCODES = frozenset(
    """
    fusion copy copy-start transpose reshape broadcast iota convert slice dynamic-slice
    dynamic-update-slice concatenate pad reverse gather scatter reduce reduce-window
    select-and-scatter sort select compare clamp map rng rng-bit-generator
    rng-get-and-update-state bitcast-convert add subtract multiply divide maximum minimum negate
    abs sign exponential exponential-minus-one log log-plus-one sqrt rsqrt cbrt power tanh sine
    cosine tan atan2 logistic floor ceil round-nearest-even round-nearest-afz and or xor not
    shift-left shift-right-arithmetic shift-right-logical is-finite reduce-precision erf remainder
    real imag complex popcnt count-leading-zeros
    """.split()  # noqa: SIM905 - a list of so many is a column of a page
)
"""Opcodes whose time is that of the memory they read and write."""

GEMM_CALLS = "__cublas$"
ATTENTION_CALLS = "__cudnn$fmha"
MEMORY_CALLS = ("TopK", "__gpu$TopK", "__cub$DeviceRadixSort")
"""Prefixes of the targets of custom calls, by what they compute."""


@dataclass(frozen=True)
class MatrixProduct:
    """`batch` matrix products [m, k] x [k, n]."""

    batch: int
    m: int
    n: int
    k: int

    @property
    def flops(self) -> float:
        """Number of multiplications and additions, 2 x batch x m x n x k."""
        return 2.0 * self.batch * self.m * self.n * self.k


@dataclass(frozen=True)
class FusedAttention:
    """A fused attention kernel with scores [batch, heads, queries, keys] and heads of size `head`.

    Attributes:
        batch: samples.
        heads: query heads.
        queries: length of the query sequence.
        keys: length of the key sequence.
        head: size of a head.
        causal: whether a position attends only to itself and those before it.
        backward: whether it computes the gradients.
    """

    batch: int
    heads: int
    queries: int
    keys: int
    head: int
    causal: bool
    backward: bool

    @property
    def flops(self) -> float:
        """FLOPs of 2 products of the scores' size x head in forward, 5 in backward; half if causal.

        Backward recomputes the scores (arXiv:2307.08691, section 4.1).
        """
        scores = self.batch * self.heads * self.queries * self.keys
        return 2.0 * (5 if self.backward else 2) * scores * self.head * (0.5 if self.causal else 1)


@dataclass(frozen=True)
class Arithmetic:
    """What an operation computes.

    Attributes:
        kind: `matmul`, `attention`, `memory` (no products) or `unpriced` (an unknown opcode).
        products: its matrix products.
        attention: its fused attention.
        dtype: element type of the factors; empty if there are none.
    """

    kind: str
    products: tuple[MatrixProduct, ...] = ()
    attention: FusedAttention | None = None
    dtype: str = ""

    @property
    def flops(self) -> float:
        """FLOPs of its products and attention."""
        return sum(product.flops for product in self.products) + (
            self.attention.flops if self.attention else 0.0
        )


def arithmetic(instruction: Instruction, computation: Computation, module: Module) -> Arithmetic:
    """The arithmetic of an instruction; of a fusion, the sum of the instructions in it."""
    opcode = instruction.opcode
    if opcode == "dot":
        numbers = {
            f"{side}_{what}_dimensions": instruction.numbers(f"{side}_{what}_dims")
            for side in ("lhs", "rhs")
            for what in ("batch", "contracting")
        }
        return _matmul(instruction, computation, numbers)
    if opcode == "fusion":
        inner = module.computations[instruction.called("calls")]
        parts = [arithmetic(part, inner, module) for part in inner.instructions]
        products = tuple(product for part in parts for product in part.products)
        dtype = next((part.dtype for part in parts if part.dtype), "")
        return Arithmetic("matmul" if products else "memory", products, dtype=dtype)
    if opcode == "custom-call":
        target = instruction.text("custom_call_target", r'"([^"]*)"')
        if target.startswith(ATTENTION_CALLS):
            return _attention(instruction, computation, target)
        if target.startswith(GEMM_CALLS):
            config = instruction.backend_config.get("gemm_backend_config", {})
            numbers = {
                key: tuple(int(dim) for dim in dims)
                for key, dims in config.get("dot_dimension_numbers", {}).items()
                if isinstance(dims, list)
            }
            return _matmul(instruction, computation, numbers)
        return Arithmetic("memory" if target.startswith(MEMORY_CALLS) else "unpriced")
    return Arithmetic("memory" if opcode in MEMORY_OPCODES else "unpriced")


def _matmul(
    instruction: Instruction, computation: Computation, numbers: Mapping[str, tuple[int, ...]]
) -> Arithmetic:
    """The product of an instruction, with sizes from its factors and its dimension numbers."""
    left, right = (computation.by_name[name].shapes[0] for name in instruction.operands[:2])
    contracted = numbers.get("lhs_contracting_dimensions", ())
    batch = math.prod(left.dims[axis] for axis in numbers.get("lhs_batch_dimensions", ()))
    k = math.prod(left.dims[axis] for axis in contracted)
    m = math.prod(left.dims) // max(1, batch * k)
    n = math.prod(right.dims) // max(1, batch * k)
    return Arithmetic("matmul", (MatrixProduct(batch, m, n, k),), dtype=left.dtype)


def _attention(instruction: Instruction, computation: Computation, target: str) -> Arithmetic:
    config = instruction.backend_config["cudnn_fmha_backend_config"]
    batch, heads, queries, keys = (
        int(dim) for dim in config["intermediate_tensor_shape"]["dimensions"]
    )
    shape = FusedAttention(
        batch,
        heads,
        queries,
        keys,
        head=instruction.shapes[0].dims[-1],
        causal=config.get("mask_type", "").endswith("CAUSAL"),
        backward="Backward" in target,
    )
    dtype = computation.by_name[instruction.operands[0]].shapes[0].dtype
    return Arithmetic("attention", attention=shape, dtype=dtype)
