"""Pieces that the model families share.

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
from exajax.spmd.sharding import axes_of, constrain, free_axes, manual, platform

RESIDUAL = ("batch", "sequence", "embed")
"""Logical axes of the residual stream between sublayers."""


EPSILON = 1e-5
"""What norms add to the variance: that of GPT-2, Llama 2 and 3, and Mixtral."""

_VECTOR = {"out_sharding": ("embed",)}


def weight(
    shape_in: int | Sequence[int],
    shape_out: int | Sequence[int],
    names: tuple[str | None, ...],
    *,
    bias: bool = False,
    scale: float = 0.02,
    in_fp8: bool = False,
    rngs: nnx.Rngs,
) -> nnx.LinearGeneral:
    """Returns a dense map over the trailing `shape_in` axes, its axes named for sharding."""
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
    """Returns x / rms(x) x scale over the last axis, its scale named for sharding."""
    return nnx.RMSNorm(width, epsilon=EPSILON, scale_metadata=_VECTOR, rngs=rngs)


def layer_norm(width: int, *, rngs: nnx.Rngs) -> nnx.LayerNorm:
    """Returns (x - mean) / deviation x scale + bias over the last axis, named for sharding."""
    return nnx.LayerNorm(
        width, epsilon=EPSILON, scale_metadata=_VECTOR, bias_metadata=_VECTOR, rngs=rngs
    )


class Embedding(nnx.Module):
    """A row of the table for each token, in the table's type.

    Flax's own keeps the type it was made with, which would turn a bf16 pass back into fp32.
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
        look_up = functools.partial(_look_up, axes=axes)
        return manual(look_up, axes, (vocab, tokens), tokens)(self.table[...], tokens_BT)


def _look_up(table_VD: jax.Array, tokens_BT: jax.Array, *, axes: Sequence[str]) -> jax.Array:
    """Each device looks up the tokens that are in its part of the vocabulary."""
    if "model" not in axes:
        return jnp.take(table_VD, tokens_BT, axis=0)
    here_BT = tokens_BT - jax.lax.axis_index("model") * table_VD.shape[0]
    found_BTD = jnp.take(table_VD, here_BT, axis=0, mode="clip")
    mine_BT1 = ((here_BT >= 0) & (here_BT < table_VD.shape[0]))[..., None]
    return jax.lax.psum(jnp.where(mine_BT1, found_BTD, 0), "model")


class Documents(NamedTuple):
    """The documents that are packed into a batch of sequences, laid as `zigzag` lays the stream.

    Attributes:
        number_BT: number of the document that a token is of.
        position_BT: place of the token in its document. A document that began before the sequence
            counts from the sequence's first token, since nothing before that can be seen.
    """

    number_BT: jax.Array
    position_BT: jax.Array

    @classmethod
    def of(cls, segments_BT: jax.Array) -> "Documents":
        """Returns the documents of sequences whose tokens lie in order."""
        places_T = jnp.arange(segments_BT.shape[1], dtype=jnp.int32)
        begins_BT = jnp.pad(segments_BT[:, 1:] != segments_BT[:, :-1], ((0, 0), (1, 0)))
        first_BT = jax.lax.cummax(jnp.where(begins_BT, places_T, 0), axis=1)
        laid = (zigzag(x_BT) for x_BT in (segments_BT, places_T - first_BT))
        return cls(*(constrain(x_BT, ("batch", "tokens")) for x_BT in laid))


def rotary(x_BTNH: jax.Array, theta: float, positions_BT: jax.Array | None = None) -> jax.Array:
    """Turns pairs (i, i + H/2) of every head by position x theta^(-2i/H) (arXiv:2104.09864).

    Args:
        x_BTNH: queries or keys.
        theta: base of the angles.
        positions_BT: position of every token; None counts from the beginning of the sequence.
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
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return turned.astype(x_BTNH.dtype)


QKV = ("query", "key", "value")
"""Names that blocks give (`kept_as`) to what goes into attention; then come `mixed`, `up`, `down`:
what leaves attention's last map, the feed-forward's first and its last."""

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
"""What a block keeps for its backward pass, from most to least: everything; all but the scores of
attention (which sees to it itself; selective in arXiv:2205.05198); the outputs of its weight
matmuls (attention is recomputed, as in arXiv:2205.05198, and experts, whose outputs are many
times a token's); those but the feed-forward's first; those of attention; queries, keys and values
(these three as MaxText calls them); its input alone. Last, the outputs of weight matmuls in the
memory of the host."""


RECOMPUTES_MIXED = ("save-qkv", "full")
"""Policies that recompute attention before what the feed-forward reads is there."""


def kept_as(name: str, x: jax.Array) -> jax.Array:
    """Names an array, so that a policy can keep it for the backward pass."""
    return checkpoint_name(x, name)


@dataclass(frozen=True)
class How:
    """How a model is computed. Only `fp8` and `capacity_factor` change what comes out.

    Attributes:
        flash: use the fused attention kernel.
        fp8: multiply with the weights of the blocks in fp8.
        remat: what blocks keep for the backward pass, a key of `REMAT_POLICIES`.
        interleave: parts that each pipeline stage holds of the layers.
        moe: `dropless`, or `capacity`: an expert takes so many tokens of a sequence and no more.
        capacity_factor: room of an expert, as a multiple of an even share.
        whole_tokens: whether sublayers say that they read and write tokens which `model` does not
            divide, and do not leave it to the partitioner (see `models.whole_tokens`).
    """

    flash: bool = False
    fp8: bool = False
    remat: str = "none"
    interleave: int = 1
    moe: str = "dropless"
    capacity_factor: float = 1.25
    whole_tokens: bool = False


PLAIN = How()
"""As on one device, for numbers and not for speed."""


Streamed = tuple[jax.Array, jax.Array]
"""What a block returns: the residual stream, and its share of the loss (0 where it has none)."""


UNROLLED = 12
"""Layers of a stack that is unrolled on a CPU, at most."""


class Stack(nnx.Module):
    """L equal blocks, their parameters stacked and scanned: compile time does not grow with L.

    A short stack that recomputes nothing is unrolled on a CPU: there, copying what the loop keeps
    for the backward pass into stacked arrays and out again takes a fifth of a step.

    Parameters lie as [L, ...]; interleaved over V parts of a pipeline stage, as [V, L / V, ...],
    in the same order.

    Args:
        block: makes one block; called with the stream and its documents it returns `Streamed`.
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
    ) -> Streamed:
        graph, stacked = nnx.split(self.blocks)

        def step(x_BTD: jax.Array, one_layer: nnx.State) -> Streamed:
            x_BTD, loss = nnx.merge(graph, one_layer)(x_BTD, documents)
            return constrain(x_BTD, RESIDUAL), loss

        if REMAT_POLICIES[remat]:
            # The loop already keeps XLA from undoing the recomputation by merging it away. Where
            # `model` gathers recomputed tokens of a ring, a barrier keeps them behind the block's
            # gradients: XLA's pipelined all-gathers would begin one block early, and attention
            # would be recomputed for them and again for all else.
            ring = {"context", "model"} <= set(axes_of("sequence"))
            apart = ring and remat in RECOMPUTES_MIXED
            step = jax.checkpoint(step, policy=REMAT_POLICIES[remat], prevent_cse=apart)

        def walk(x_BTD: jax.Array, layers: nnx.State) -> Streamed:
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
    """Tokens, or images, to logits in three parts, so that a pipeline can deal them out.

    A family sets `stack` and `remat`, and says how the stream begins and ends.
    """

    stack: Stack
    remat: str

    def enter(self, tokens_BT: jax.Array, segments_BT: jax.Array | None = None) -> jax.Array:
        """Returns the residual stream [B, T, D] that tokens begin with.

        Args:
            tokens_BT: tokens, in order.
            segments_BT: number of the document of each; None is one document.
        """
        raise NotImplementedError

    def head(self, x_BTD: jax.Array) -> jax.Array:
        """Returns logits [B, T, V]."""
        raise NotImplementedError

    def body(self, x_BTD: jax.Array, segments_BT: jax.Array | None = None) -> Streamed:
        """Returns the stream behind the blocks that this module holds, and their loss."""
        documents = None if segments_BT is None else Documents.of(segments_BT)
        return self.stack(x_BTD, documents, remat=self.remat)

    def __call__(self, tokens_BT: jax.Array, segments_BT: jax.Array | None = None) -> jax.Array:
        """Returns logits [B, T, V] for the token after each of `tokens_BT`.

        Where `context` divides the sequence they lie as `zigzag` lays it.
        """
        return self.head(self.body(self.enter(tokens_BT, segments_BT), segments_BT)[0])
