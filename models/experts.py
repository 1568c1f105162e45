"""Mixture of experts: tokens are sent to their experts and back, with or without a capacity.

Every device computes its own samples; where `expert` divides the experts, tokens are sent over it.

Shapes: B batch, T sequence, D width, F feed-forward width, E experts, k experts of a token,
C slots of an expert, M tokens of a device or a group of devices, S = M k choices of these tokens.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec

from exajax.models.attention import zigzag_order
from exajax.spmd.mesh import BATCH_AXES
from exajax.spmd.sharding import axis_size, free_axes, manual


class Routing(NamedTuple):
    """The experts that each token goes to.

    Attributes:
        experts_BTk: indices of the experts.
        gates_BTk: weights of their outputs, which sum to 1 for each token.
    """

    experts_BTk: jax.Array
    gates_BTk: jax.Array


class ExpertWeights(NamedTuple):
    """Weights of E SwiGLU feed-forwards: down(silu(gate(x)) * up(x))."""

    gate_EDF: jax.Array
    up_EDF: jax.Array
    down_EFD: jax.Array


def imbalance(scores_BTE: jax.Array, experts_BTk: jax.Array) -> jax.Array:
    """The load-balancing loss: E x the sum over experts of (share of tokens x mean score).

    It is 1 if the experts are balanced (arXiv:2101.03961, equation 4). Shares are taken over a
    sequence, not over a device as in the paper, so that the loss does not depend on the mesh.
    """
    E = scores_BTE.shape[-1]
    chosen_BTkE = jax.nn.one_hot(experts_BTk, E, dtype=jnp.float32)
    share_BE, score_BE = jnp.mean(chosen_BTkE, axis=(1, 2)), jnp.mean(scores_BTE, axis=1)
    return E * jnp.mean(jnp.sum(share_BE * score_BE, axis=-1))


def with_capacity(
    x_BTD: jax.Array, routing: Routing, weights: ExpertWeights, capacity: int
) -> jax.Array:
    """Outputs of experts that take at most `capacity` tokens of each sequence; the rest is dropped.

    Tokens queue in the order of the sequence (arXiv:2006.16668), so that the result does not depend
    on the mesh. One all-to-all sends them to their experts, and one sends them back.
    """
    compute = functools.partial(_with_capacity, capacity=capacity)
    return _on_every_device(compute, x_BTD, routing, weights, divided=False)


def _with_capacity(
    x_BTD: jax.Array,
    routing: Routing,
    weights: ExpertWeights,
    *,
    axes: tuple[str, ...],
    capacity: int,
) -> jax.Array:
    experts_BTk, gates_BTk = routing
    gate_EDF, up_EDF, down_EFD = weights
    B, T, k = experts_BTk.shape
    ways = axis_size("context") if "context" in axes else 1
    E = gate_EDF.shape[0] * (axis_size("expert") if "expert" in axes else 1)
    # `context` divides the slots of an expert; the last ones may stay empty.
    C = math.ceil(capacity / ways)
    slot_BTk = _queue_position(experts_BTk, E)
    is_here_BTk = slot_BTk < capacity
    if "context" in axes:
        slot_BTk -= jax.lax.axis_index("context") * C
        is_here_BTk &= (slot_BTk >= 0) & (slot_BTk < C)
    index_BTk = jnp.where(is_here_BTk, experts_BTk * C + slot_BTk, E * C)

    def token_of_slot(index_Tk: jax.Array) -> jax.Array:
        """The token in every slot; T, which is out of bounds, in an empty one."""
        token_Tk = jnp.broadcast_to(jnp.arange(T)[:, None], (T, k))
        return jnp.full(E * C, T).at[index_Tk.ravel()].set(token_Tk.ravel(), mode="drop")

    take = jax.vmap(functools.partial(jnp.take, axis=0, mode="fill", fill_value=0))
    x_BECD = take(x_BTD, jax.vmap(token_of_slot)(index_BTk)).reshape(B, E, C, -1)
    if "expert" in axes:
        x_BECD = jax.lax.all_to_all(x_BECD, "expert", split_axis=1, concat_axis=0, tiled=True)
    gated_BECF = jnp.einsum("BECD,EDF->BECF", x_BECD, gate_EDF)
    h_BECF = jnp.einsum("BECD,EDF->BECF", x_BECD, up_EDF)
    h_BECF *= nnx.silu(gated_BECF)
    y_BECD = jnp.einsum("BECF,EFD->BECD", h_BECF, down_EFD)
    if "expert" in axes:
        y_BECD = jax.lax.all_to_all(y_BECD, "expert", split_axis=0, concat_axis=1, tiled=True)
    y_BTkD = take(y_BECD.reshape(B, E * C, -1), index_BTk)
    y_BTD = jnp.einsum("BTkD,BTk->BTD", y_BTkD, gates_BTk.astype(y_BTkD.dtype))
    if "model" in axes:
        y_BTD = jax.lax.psum(y_BTD, "model")
    if "context" in axes:
        y_BTD = jax.lax.psum_scatter(y_BTD, "context", scatter_dimension=1, tiled=True)
    return y_BTD


def _queue_position(experts_BTk: jax.Array, E: int) -> jax.Array:
    """Number of earlier tokens of the sequence that chose the same expert, [B, T, k]."""
    B, T, k = experts_BTk.shape
    order = zigzag_order(T)
    position = jnp.zeros(T, jnp.int32).at[order].set(jnp.arange(T))
    chosen = jnp.take(experts_BTk, position, axis=1).reshape(B, T * k)
    one_hot = jax.nn.one_hot(chosen, E, dtype=jnp.int32)
    earlier = jnp.sum((jnp.cumsum(one_hot, axis=1) - one_hot) * one_hot, axis=-1)
    return jnp.take(earlier.reshape(B, T, k), order, axis=1)


def dropless(x_BTD: jax.Array, routing: Routing, weights: ExpertWeights) -> jax.Array:
    """Outputs of experts that take every token.

    One device may get all tokens of the `expert` axis, so that an all-to-all with enough space
    would move as much as an all-gather, which is used instead. Each device then sorts the tokens of
    its own experts to the front (arXiv:2211.15841).
    """
    return _on_every_device(_dropless, x_BTD, routing, weights, divided=True)


def _on_every_device(
    compute: Callable[..., jax.Array],
    x_BTD: jax.Array,
    routing: Routing,
    weights: ExpertWeights,
    *,
    divided: bool,
) -> jax.Array:
    """Calls `compute` for every device's samples and experts.

    Args:
        compute: takes shards of the arrays, and as `axes` the mesh axes that divide them.
        x_BTD: tokens.
        routing: experts of each token.
        weights: weights of the experts.
        divided: whether `compute` takes a shard of each sequence where `context` divides it, or
            the whole.
    """
    axes = free_axes([*BATCH_AXES, "context", "model"])
    if not axes:
        return compute(x_BTD, routing, weights, axes=axes)
    expert, model, context = (
        name if name in axes else None for name in ("expert", "model", "context")
    )
    batch = tuple(axis for axis in axes if axis in BATCH_AXES) or None
    out = PartitionSpec(batch, context)
    tokens = out if divided else PartitionSpec(batch)
    wide, narrow = PartitionSpec(expert, None, model), PartitionSpec(expert, model, None)
    weight_specs: tuple[Any, ...] = wide, wide, narrow
    in_specs = tokens, tokens, ExpertWeights(*weight_specs)
    mapped: Callable[..., jax.Array] = manual(
        functools.partial(compute, axes=axes), axes, in_specs, out
    )
    return mapped(x_BTD, routing, weights)


def _dropless(
    x_BTD: jax.Array, routing: Routing, weights: ExpertWeights, *, axes: tuple[str, ...]
) -> jax.Array:
    experts_BTk, gates_BTk = routing
    gate_EDF, up_EDF, down_EFD = weights
    k, E, shape = experts_BTk.shape[-1], gate_EDF.shape[0], x_BTD.shape
    x_MD, experts_Mk, gates_Mk = (
        a.reshape(-1, a.shape[-1]) for a in (x_BTD, experts_BTk, gates_BTk)
    )
    if "expert" in axes:
        gather = functools.partial(jax.lax.all_gather, axis_name="expert", tiled=True)
        x_MD, experts_Mk, gates_Mk = gather(x_MD), gather(experts_Mk), gather(gates_Mk)
        experts_Mk = experts_Mk - jax.lax.axis_index("expert") * E
    is_here_S = ((experts_Mk >= 0) & (experts_Mk < E)).ravel()
    expert_S = jnp.where(is_here_S, experts_Mk.ravel(), E)
    order_S = jnp.argsort(expert_S, stable=True)
    sizes_E = jnp.bincount(expert_S, length=E).astype(jnp.int32)
    x_SD = x_MD[order_S // k]
    gated_SF = jax.lax.ragged_dot(x_SD, gate_EDF, sizes_E)
    h_SF = jax.lax.ragged_dot(x_SD, up_EDF, sizes_E)
    h_SF *= nnx.silu(gated_SF)
    y_SD = jax.lax.ragged_dot(h_SF, down_EFD, sizes_E)
    weight_S = gates_Mk.ravel()[order_S].astype(y_SD.dtype)
    # The kernel does not write rows after the last group.
    y_SD = jnp.where(is_here_S[order_S][:, None], y_SD * weight_S[:, None], 0)
    y_MD = jnp.zeros_like(x_MD).at[order_S // k].add(y_SD)
    if "expert" in axes:
        y_MD = jax.lax.psum_scatter(y_MD, "expert", tiled=True)
    if "model" in axes:
        y_MD = jax.lax.psum(y_MD, "model")
    return y_MD.reshape(shape)
