"""Workaround for XLA's partitioner: sublayers that constrain their tokens not to be divided.

With sequence parallelism and a ring, the partitioner can confuse the axes `context` and `model`.
"""

import math
from collections.abc import Mapping

import jax

from exajax.models.layers import RESIDUAL
from exajax.spmd.sharding import constrain, zero_axes

WHOLE = ("batch", "tokens", "embed")
"""Logical axes of the input and output of a sublayer whose tokens `model` does not divide."""


def needs_whole_tokens(sizes: Mapping[str, int], zero: int, sequence_parallel: bool) -> bool:
    """Whether sublayers need the constraint on a mesh.

    With sequence parallelism, the tokens that a sublayer adds to the stream are divided by
    `context` and `model`, and those that it multiplies by `context` alone. XLA's partitioner
    matches the shards of both by their number, not by mesh axis. If the number of shards of the
    parameters divides that of the sequence, it shards each weight over `context` instead of
    gathering it, and gathers the activations of the whole sequence: 29% more FLOPs in llama2-7b on
    `fsdp=2,context=2,model=2`.

    Args:
        sizes: sizes of the mesh axes.
        zero: ZeRO level of the data axis.
        sequence_parallel: whether `model` divides the stream between sublayers.
    """
    shards = math.prod(sizes[axis] for axis in zero_axes(zero)["parameters"] if axis != "pipe")
    confused = shards > 1 and sizes["context"] % shards == 0
    return sequence_parallel and sizes["model"] > 1 and confused


def whole_input(x_BTD: jax.Array, whole: bool) -> jax.Array:
    """The input of a sublayer; if `whole`, constrained to tokens that `model` does not divide."""
    return constrain(x_BTD, WHOLE) if whole else x_BTD


def whole_output(y_BTD: jax.Array, whole: bool) -> jax.Array:
    """The output of a sublayer; if `whole`, first constrained like its input, then like RESIDUAL.

    The first constraint makes the partitioner sum the output over `model` before it divides it.
    """
    return constrain(constrain(y_BTD, WHOLE), RESIDUAL) if whole else y_BTD
