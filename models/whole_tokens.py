"""Tokens of a sublayer that `model` does not divide, said where XLA would err about them."""

import math
from collections.abc import Mapping

import jax

from exajax.models.layers import RESIDUAL
from exajax.spmd.sharding import constrain, zero_axes

WHOLE = ("batch", "tokens", "embed")
"""Logical axes of what a sublayer reads and writes when `model` divides none of its tokens."""


def needs_whole_tokens(sizes: Mapping[str, int], zero: int, sequence_parallel: bool) -> bool:
    """Whether the partitioner lays matrices over the wrong axis when it is not told about tokens.

    Sequence parallelism divides the tokens that a sublayer adds to the stream by `context` and by
    `model`, and the tokens it multiplies by `context` alone. XLA's partitioner then matches the
    parts of both sides by their number, not by mesh axis. Where parameters lie in as many parts as
    the sequence, or a divisor of that, it lays each matrix over `context` instead of gathering it,
    and gathers the activations of the whole sequence: 29% more FLOPs in llama2-7b on
    `fsdp=2,context=2,model=2`.

    Args:
        sizes: of the mesh axes.
        zero: ZeRO level of the data axis.
        sequence_parallel: whether `model` divides the stream between sublayers.
    """
    shards = math.prod(sizes[axis] for axis in zero_axes(zero)["parameters"] if axis != "pipe")
    matched = shards > 1 and sizes["context"] % shards == 0
    return sequence_parallel and sizes["model"] > 1 and matched


def gathered(x_BTD: jax.Array, whole: bool) -> jax.Array:
    """Returns what a sublayer reads; where `whole`, with tokens that `model` does not divide."""
    return constrain(x_BTD, WHOLE) if whole else x_BTD


def summed(y_BTD: jax.Array, whole: bool) -> jax.Array:
    """Returns what a sublayer adds to the stream, divided like it; summed up before if `whole`."""
    return constrain(constrain(y_BTD, WHOLE), RESIDUAL) if whole else y_BTD
