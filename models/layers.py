"""Layers that the model families share: dense maps, norms, embedding, rotary positions, stacks.

Shapes: B batch, T sequence, D width, N query heads, K kv heads, H head size, F feed-forward
width, V vocabulary, L layers.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec

from exajax.models import fp8
from exajax.models.attention import zigzag, zigzag_order
from exajax.spmd.mesh import BATCH_AXES
from exajax.spmd.sharding import constrain, free_axes, manual, mesh_axes_of, platform

RESIDUAL = ("batch", "sequence", "embed")
"""Logical axes of the residual stream between sublayers."""


EPSILON = 1e-5
"""Added to the variance in norms; the value of GPT-2, Llama 2 and 3, and Mixtral."""

_VECTOR = {"out_sharding": ("embed",)}


def linear(
    shape_in: int | Sequence[int],
    shape_out: int | Sequence[int],
    names: tuple[str | None, ...],
    *,
    bias: bool = False,
    scale: float = 0.02,
    in_fp8: bool = False,
    rngs: nnx.Rngs,
) -> nnx.LinearGeneral:
    """A dense layer over the trailing axes of its input.

    Args:
        shape_in: sizes of the trailing axes of the input.
        shape_out: sizes of the axes that replace them.
        names: logical names of the kernel's axes, for sharding.
        bias: whether a bias is added.
        scale: standard deviation of the initial kernel.
        in_fp8: whether to multiply in fp8.
        rngs: random streams.
    """
    axes_in = (shape_in,) if isinstance(shape_in, int) else tuple(shape_in)
    return nnx.LinearGeneral(
        axes_in,
        shape_out,
        axis=tuple(range(-len(axes_in), 0)),
        use_bias=bias,
        kernel_init=nnx.initializers.normal(scale),
        kernel_metadata={"out_sharding": names},
        bias_metadata={"out_sharding": names[len(axes_in) :]},
        dot_general=fp8.dot_general if in_fp8 else None,
        rngs=rngs,
    )


def rms_norm(width: int, *, rngs: nnx.Rngs) -> nnx.RMSNorm:
    """RMSNorm over the last axis, x / rms(x) * scale, with axes named for sharding."""
    return nnx.RMSNorm(width, epsilon=EPSILON, scale_metadata=_VECTOR, rngs=rngs)


def layer_norm(width: int, *, rngs: nnx.Rngs) -> nnx.LayerNorm:
    """LayerNorm over the last axis, (x - mean) / std * scale + bias, named for sharding."""
    return nnx.LayerNorm(
        width, epsilon=EPSILON, scale_metadata=_VECTOR, bias_metadata=_VECTOR, rngs=rngs
    )


class Embedding(nnx.Module):
    """Embedding table [V, D]; the result has the table's type.

    Flax's own returns the type that it was built with, which would make a bf16 pass fp32.
    """

    def __init__(self, vocab: int, width: int, *, rngs: nnx.Rngs):
        table_VD = nnx.initializers.normal(0.02)(rngs.params(), (vocab, width))
        self.table = nnx.Param(table_VD, out_sharding=("vocab", "embed"))

    def __call__(self, tokens_BT: jax.Array) -> jax.Array:
        axes = free_axes([*BATCH_AXES, "context", "model"])
        if not axes:
            return jnp.take(self.table[...], tokens_BT, axis=0)
        batch = tuple(axis for axis in axes if axis in BATCH_AXES) or None
        tokens = PartitionSpec(batch, "context" if "context" in axes else None)
        vocab = PartitionSpec("model" if "model" in axes else None)
        look_up = functools.partial(_look_up_shard, axes=axes)
        return manual(look_up, axes, (vocab, tokens), tokens)(self.table[...], tokens_BT)


def _look_up_shard(table_VD: jax.Array, tokens_BT: jax.Array, *, axes: Sequence[str]) -> jax.Array:
    """Rows of the table for tokens; each device looks up those in its shard of the vocabulary."""
    if "model" not in axes:
        return jnp.take(table_VD, tokens_BT, axis=0)
    local_BT = tokens_BT - jax.lax.axis_index("model") * table_VD.shape[0]
    row_BTD = jnp.take(table_VD, local_BT, axis=0, mode="clip")
    is_local_BT1 = ((local_BT >= 0) & (local_BT < table_VD.shape[0]))[..., None]
    return jax.lax.psum(jnp.where(is_local_BT1, row_BTD, 0), "model")


class Documents(NamedTuple):
    """The documents packed into a batch of sequences, in the order of `zigzag`.

    Attributes:
        segment_BT: number of the document that each token belongs to.
        position_BT: position of each token in its document. A document that continues from the
            sequence before counts from the first token of this one, which is all that is visible.
    """

    segment_BT: jax.Array
    position_BT: jax.Array

    @classmethod
    def of(cls, segments_BT: jax.Array) -> "Documents":
        """The documents of sequences.

        Args:
            segments_BT: number of the document of each token, in the order of the text.
        """
        index_T = jnp.arange(segments_BT.shape[1], dtype=jnp.int32)
        starts_BT = jnp.pad(segments_BT[:, 1:] != segments_BT[:, :-1], ((0, 0), (1, 0)))
        first_BT = jax.lax.cummax(jnp.where(starts_BT, index_T, 0), axis=1)
        ordered = (zigzag(x_BT) for x_BT in (segments_BT, index_T - first_BT))
        return cls(*(constrain(x_BT, ("batch", "tokens")) for x_BT in ordered))


def rotary(x_BTNH: jax.Array, theta: float, positions_BT: jax.Array | None = None) -> jax.Array:
    """Rotary position embedding (arXiv:2104.09864).

    Rotates each pair (i, i + H/2) of a head by the angle position x theta^(-2i/H).

    Args:
        x_BTNH: queries or keys.
        theta: base of the angles.
        positions_BT: position of every token; None for their index in the sequence.
    """
    T, H = x_BTNH.shape[1], x_BTNH.shape[-1]
    frequency_H = theta ** (-jnp.arange(0, H, 2, dtype=jnp.float32) / H)
    if positions_BT is None:
        positions = jnp.asarray(zigzag_order(T), jnp.float32)
    else:
        positions = positions_BT.astype(jnp.float32)
    angle = positions[..., None] * frequency_H
    cos, sin = jnp.cos(angle)[..., None, :], jnp.sin(angle)[..., None, :]
    first, second = jnp.split(x_BTNH.astype(jnp.float32), 2, axis=-1)
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return rotated.astype(x_BTNH.dtype)


QKV = ("query", "key", "value")
"""Names that blocks give to the inputs of attention (`name_for_remat`). The others are `mixed`, the
output of attention's last projection, and `up` and `down`, those of the feed-forward's."""

REMAT_POLICIES: dict[str, Callable[..., Any] | None] = {
    "none": None,
    "attention": None,
    "selective": jax.checkpoint_policies.checkpoint_dots_with_no_batch_dims,
    "save-dots-except-mlp-wi": jax.checkpoint_policies.save_only_these_names(*QKV, "mixed", "down"),
    "save-dots-except-mlp": jax.checkpoint_policies.save_only_these_names(*QKV, "mixed"),
    "save-qkv": jax.checkpoint_policies.save_only_these_names(*QKV),
    "full": jax.checkpoint_policies.nothing_saveable,
    "offload": jax.checkpoint_policies.offload_dot_with_no_batch_dims("device", "pinned_host"),
}
"""What a block saves for its backward pass, from most to least:

- `none`: everything.
- `attention`: everything but the attention scores, which `attention` itself recomputes
  (selective recomputation in arXiv:2205.05198).
- `selective`: outputs of matmuls with weights; attention and experts are recomputed.
- `save-dots-except-mlp-wi`: those without the first of the feed-forward (MaxText's name).
- `save-dots-except-mlp`: those of attention (MaxText's name).
- `save-qkv`: queries, keys and values (MaxText's name).
- `full`: only its input.
- `offload`: outputs of matmuls with weights, in the memory of the host.
"""


RECOMPUTES_MIXED = ("save-qkv", "full")
"""Policies under which the backward pass recomputes attention to get the feed-forward's input."""


def name_for_remat(name: str, x: jax.Array) -> jax.Array:
    """An array with a name, by which a remat policy can save it for the backward pass."""
    return checkpoint_name(x, name)


@dataclass(frozen=True)
class ComputeOptions:
    """How a model is computed. Only `fp8`, `moe` and `capacity_factor` change its results.

    Attributes:
        flash: whether to use the fused attention kernel.
        fp8: whether to multiply with the weights of blocks in fp8.
        remat: what blocks save for the backward pass, a key of `REMAT_POLICIES`.
        interleave: chunks of layers of each pipeline stage.
        moe: `dropless`, or `capacity`: an expert takes a limited number of tokens of a sequence.
        capacity_factor: that limit / an even share of the tokens.
        whole_tokens: whether to constrain inputs and outputs of sublayers to tokens that `model`
            does not divide, instead of leaving it to the partitioner (see `models.whole_tokens`).
    """

    flash: bool = False
    fp8: bool = False
    remat: str = "none"
    interleave: int = 1
    moe: str = "dropless"
    capacity_factor: float = 1.25
    whole_tokens: bool = False


REFERENCE = ComputeOptions()
"""The reference computation: plain matmuls, everything saved."""


StreamAndLoss = tuple[jax.Array, jax.Array]
"""What a block returns: the residual stream, and the block's extra loss, 0 if it has none."""


UNROLLED = 12
"""Most layers of a stack that is unrolled on a CPU."""


class LayerStack(nnx.Module):
    """L equal blocks in sequence, scanned, so that compile time does not grow with L.

    On a CPU, a short stack without recomputation is unrolled: copying the loop's saved activations
    into stacked arrays and back would take a fifth of a step there.

    Parameters are stacked as [L, ...]; or, for an interleaved pipeline schedule with V chunks in a
    stage, as [V, L / V, ...], in the same order.

    Args:
        block: `block(rngs)` returns a block, which is called as `block(stream, documents)` and
            returns `StreamAndLoss`.
        layers: number of blocks.
        parts: V.
        name: logical name of the stacked axis.
        rngs: random streams.
    """

    def __init__(
        self,
        block: Callable[[nnx.Rngs], nnx.Module],
        layers: int,
        *,
        parts: int = 1,
        name: str = "layers",
        rngs: nnx.Rngs,
    ):
        build = nnx.vmap(block, transform_metadata={nnx.PARTITION_NAME: name})
        self.interleaved = parts > 1
        if self.interleaved:
            build = nnx.vmap(build, transform_metadata={nnx.PARTITION_NAME: "parts"})
            self.blocks = build(rngs.split((parts, layers // parts)))
        else:
            self.blocks = build(rngs.split(layers))

    def __call__(
        self, x_BTD: jax.Array, documents: Documents | None = None, *, remat: str = "none"
    ) -> StreamAndLoss:
        graph, stacked = nnx.split(self.blocks)

        def step(x_BTD: jax.Array, layer: nnx.State) -> StreamAndLoss:
            x_BTD, loss = nnx.merge(graph, layer)(x_BTD, documents)
            return constrain(x_BTD, RESIDUAL), loss

        if REMAT_POLICIES[remat]:
            # In a loop, XLA cannot merge the recomputation with the forward pass, so it needs no
            # barrier. An exception are recomputed tokens of a ring that `model` gathers: XLA's
            # pipelined all-gathers would start one block early, so that attention would be
            # recomputed once for them and once for the rest. A barrier keeps them after the
            # gradients of the block before.
            ring = {"context", "model"} <= set(mesh_axes_of("sequence"))
            barrier = ring and remat in RECOMPUTES_MIXED
            step = jax.checkpoint(step, policy=REMAT_POLICIES[remat], prevent_cse=barrier)

        def walk(x_BTD: jax.Array, layers: nnx.State) -> StreamAndLoss:
            count = len(jax.tree.leaves(layers)[0])
            short = remat == "none" and platform() == "cpu" and count <= UNROLLED
            x_BTD, losses_L = jax.lax.scan(step, x_BTD, layers, unroll=count if short else 1)
            return x_BTD, jnp.sum(losses_L)

        with jax.named_scope("layers"):
            if not self.interleaved:
                return walk(x_BTD, stacked)
            x_BTD, losses_V = jax.lax.scan(walk, x_BTD, stacked)
            return x_BTD, jnp.sum(losses_V)


class Decoder(nnx.Module):
    """Base class of the model families: inputs to logits in three parts, for a pipeline.

    A family sets `stack` and `remat`, and implements `enter` and `head`.
    """

    stack: LayerStack
    remat: str

    def enter(self, tokens_BT: jax.Array, segments_BT: jax.Array | None = None) -> jax.Array:
        """The residual stream [B, T, D] that enters the first block.

        Args:
            tokens_BT: tokens, in the order of the text.
            segments_BT: number of the document of each token; None if there is one document.
        """
        raise NotImplementedError

    def head(self, x_BTD: jax.Array) -> jax.Array:
        """Logits [B, T, V] of the residual stream after the last block."""
        raise NotImplementedError

    def body(self, x_BTD: jax.Array, segments_BT: jax.Array | None = None) -> StreamAndLoss:
        """The residual stream after this module's blocks, and the sum of their extra losses."""
        documents = None if segments_BT is None else Documents.of(segments_BT)
        return self.stack(x_BTD, documents, remat=self.remat)

    def __call__(self, tokens_BT: jax.Array, segments_BT: jax.Array | None = None) -> jax.Array:
        """Logits [B, T, V] for the token after each of `tokens_BT`.

        Where `context` divides the sequence, they are in the order of `zigzag`.
        """
        return self.head(self.body(self.enter(tokens_BT, segments_BT), segments_BT)[0])
