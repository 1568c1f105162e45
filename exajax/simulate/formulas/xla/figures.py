"""Figures of the `xla` formulas: `meshes/programs/xla.toml`, where each has its source."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

from pydantic import BeforeValidator, Field

from exajax.files.schema import Text
from exajax.machine.programs import Figure, Pair, Triple, load_program, numbers
from exajax.machine.sourced_values import TABLE

NAME = "xla"
"""Name of the file."""

EXPERT_CAPACITY = 1.25
"""Slots of an expert, over an even share of the tokens (default of `Recipe.capacity_factor`)."""

Coefficients = Annotated[
    tuple[float, float, float, float], BeforeValidator(lambda value: numbers(value, 4))
]
"""Bytes of the residual stream, of queries, keys and values, of the feed-forward, of scores."""


@dataclass(frozen=True)
class PassBytes:
    """What a pass over a block moves besides its products, for each token and number.

    Attributes:
        forward: the forward pass.
        backward: the backward pass, with what it recomputes.
    """

    __pydantic_config__ = TABLE

    forward: Coefficients
    backward: Coefficients


@dataclass(frozen=True)
class BlockBytes:
    """`PassBytes` by policy, for each kind of chip and of feed-forward.

    Attributes:
        unit: of every coefficient.
        about: what they are.
        source: where they are from.
        bf16_gated: chips that compute in bf16 besides products, gated feed-forward.
        bf16_plain: the same chips, plain feed-forward.
        fp32_gated: chips that compute in fp32 besides products, gated feed-forward.
        fp32_plain: the same chips, plain feed-forward.
    """

    __pydantic_config__ = TABLE

    unit: Text
    about: Text
    source: Text
    bf16_gated: Mapping[str, PassBytes]
    bf16_plain: Mapping[str, PassBytes]
    fp32_gated: Mapping[str, PassBytes]
    fp32_plain: Mapping[str, PassBytes]


@dataclass(frozen=True)
class Elementwise:
    """`[elementwise]`: bytes that a block moves besides its products."""

    __pydantic_config__ = TABLE

    block: Annotated[BlockBytes, Field(validation_alias="bytes")]
    unfused_scores: Pair
    fp8_casts: Pair
    routed: Pair
    pipeline_saved: Pair
    ring_scores: Pair
    ring_queries: Pair
    transposed_activations: Pair
    transposed_recomputed: Figure
    sum_of_gradients: Figure


@dataclass(frozen=True)
class Parameters:
    """`[parameters]`: bytes that parameters cost besides products."""

    __pydantic_config__ = TABLE

    sliced: Pair
    transposed: Figure
    joined: Figure
    accumulated: Figure
    pipeline_zeros: Figure
    cast_once: Figure
    sums_once: Figure
    means_once: Figure
    gathered_once: Figure
    updated: Pair


@dataclass(frozen=True)
class Kernels:
    """`[kernels]`: how many there are, and what those of scores and logits move."""

    __pydantic_config__ = TABLE

    memory_bound: Pair
    ring: Pair
    ring_scores: Figure
    loss: Figure


@dataclass(frozen=True)
class TensorExposed:
    """`[tensor_exposed]`: exposed collectives over `tensor`."""

    __pydantic_config__ = TABLE

    small_group: Figure
    large_group: Figure
    sharded: Figure
    pipeline: Pair
    pipeline_recomputed: Pair


@dataclass(frozen=True)
class RingExposed:
    """`[ring_exposed]`: exposed collectives of a ring."""

    __pydantic_config__ = TABLE

    with_memory: Pair
    without_memory: Pair
    passes: Pair


@dataclass(frozen=True)
class Exposed:
    """`[exposed]`: exposed shares of other transfers."""

    __pydantic_config__ = TABLE

    offloaded: Figure
    gradients_overlap: Figure
    gradients_reduced: Figure
    parameters_gathered: Figure
    without_overlap: Figure
    gathered_recomputed: Figure


@dataclass(frozen=True)
class Overlap:
    """`[overlap]`: shares of a pass that collectives of parameters overlap with.

    Of each three: parameters gathered in the forward pass, in the backward pass, and gradients
    scattered in the backward pass.
    """

    __pydantic_config__ = TABLE

    alone_estimated: Triple
    alone_fixed: Triple
    tensor: Triple
    expert: Triple
    context: Triple


@dataclass(frozen=True)
class SavedFigures:
    """`[saved]`: what blocks save besides the arrays of their policy."""

    __pydantic_config__ = TABLE

    fp32: Pair
    gathered_stream: Figure
    two_orders_ways: Figure
    ring_loop: Figure


@dataclass(frozen=True)
class MemoryFigures:
    """`[memory]`: the rest of a device's memory."""

    __pydantic_config__ = TABLE

    scheduler_share: Figure
    scheduler_slop: Figure
    logits: Figure
    repeated_logits: Figure
    work: Pair
    pipeline_gradient: Figure
    fits_margin: Figure


@dataclass(frozen=True)
class XlaFigures:
    """All of `meshes/programs/xla.toml`, a table each; entries say there what they are about."""

    __pydantic_config__ = TABLE

    elementwise: Elementwise
    parameters: Parameters
    kernels: Kernels
    tensor_exposed: TensorExposed
    ring_exposed: RingExposed
    exposed: Exposed
    overlap: Overlap
    saved: SavedFigures
    memory: MemoryFigures


def xla_figures() -> XlaFigures:
    """The figures, read once."""
    return load_program(NAME, XlaFigures)
