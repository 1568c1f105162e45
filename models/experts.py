"""Tokens to their experts and back: with room for all of them, or for a share.

Every device works on its own samples; where `expert` divides the experts, tokens travel.

Shapes: B batch, T sequence, D width, F feed-forward width, E experts, k experts of a token,
C slots of an expert, M tokens of a device or of a group of them, S = M k of their choices.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec

from exajax.models.attention import zigzag_order
from exajax.spmd.mesh import BATCH_AXES
from exajax.spmd.sharding import axis_size, free_axes, manual


def imbalance(scores_BTE: jax.Array, experts_BTk: jax.Array) -> jax.Array:
    """Returns E x sum over experts of its share of the tokens x its mean score; 1 is balanced.

    Shares are those of a sequence (arXiv:2101.03961, equation 4, there of a device), so that the
    number does not depend on the mesh.
    """
    E = scores_BTE.shape[-1]
    chosen_BTkE = jax.nn.one_hot(experts_BTk, E, dtype=jnp.float32)
    share_BE, score_BE = jnp.mean(chosen_BTkE, axis=(1, 2)), jnp.mean(scores_BTE, axis=1)
    return E * jnp.mean(jnp.sum(share_BE * score_BE, axis=-1))


def with_capacity(
    x_BTD: jax.Array,
    experts_BTk: jax.Array,
    gates_BTk: jax.Array,
    gate_EDF: jax.Array,
    up_EDF: jax.Array,
    down_EFD: jax.Array,
    room: int,
) -> jax.Array:
    """Experts that take `room` tokens of each sequence; what comes after is dropped.

    Tokens queue in the order of the sequence (arXiv:2006.16668), so that the mesh changes
    nothing. One all-to-all takes them to their experts, and one back.
    """
    compute = functools.partial(_with_capacity, room=room)
    arguments = x_BTD, experts_BTk, gates_BTk, gate_EDF, up_EDF, down_EFD
    return _mapped(compute, arguments, divided=False)


def _with_capacity(
    x_BTD: jax.Array,
    experts_BTk: jax.Array,
    gates_BTk: jax.Array,
    gate_EDF: jax.Array,
    up_EDF: jax.Array,
    down_EFD: jax.Array,
    *,
    axes: tuple[str, ...],
    room: int,
) -> jax.Array:
    B, T, k = experts_BTk.shape
    ways = axis_size("context") if "context" in axes else 1
    E = gate_EDF.shape[0] * (axis_size("expert") if "expert" in axes else 1)
    # `context` divides the slots of an expert; the last may stay empty.
    C = math.ceil(room / ways)
    slot_BTk = _queue(experts_BTk, E)
    mine_BTk = slot_BTk < room
    if "context" in axes:
        slot_BTk -= jax.lax.axis_index("context") * C
        mine_BTk &= (slot_BTk >= 0) & (slot_BTk < C)
    place_BTk = jnp.where(mine_BTk, experts_BTk * C + slot_BTk, E * C)

    def fill(place_Tk: jax.Array) -> jax.Array:
        """Returns the token of every slot; T, behind the end, where one stays empty."""
        token_Tk = jnp.broadcast_to(jnp.arange(T)[:, None], (T, k))
        return jnp.full(E * C, T).at[place_Tk.ravel()].set(token_Tk.ravel(), mode="drop")

    take = jax.vmap(functools.partial(jnp.take, axis=0, mode="fill", fill_value=0))
    x_BECD = take(x_BTD, jax.vmap(fill)(place_BTk)).reshape(B, E, C, -1)
    if "expert" in axes:
        x_BECD = jax.lax.all_to_all(x_BECD, "expert", split_axis=1, concat_axis=0, tiled=True)
    gated_BECF = jnp.einsum("BECD,EDF->BECF", x_BECD, gate_EDF)
    h_BECF = jnp.einsum("BECD,EDF->BECF", x_BECD, up_EDF)
    h_BECF *= nnx.silu(gated_BECF)
    y_BECD = jnp.einsum("BECF,EFD->BECD", h_BECF, down_EFD)
    if "expert" in axes:
        y_BECD = jax.lax.all_to_all(y_BECD, "expert", split_axis=0, concat_axis=1, tiled=True)
    y_BTkD = take(y_BECD.reshape(B, E * C, -1), place_BTk)
    y_BTD = jnp.einsum("BTkD,BTk->BTD", y_BTkD, gates_BTk.astype(y_BTkD.dtype))
    if "model" in axes:
        y_BTD = jax.lax.psum(y_BTD, "model")
    if "context" in axes:
        y_BTD = jax.lax.psum_scatter(y_BTD, "context", scatter_dimension=1, tiled=True)
    return y_BTD


def _queue(experts_BTk: jax.Array, E: int) -> jax.Array:
    """Returns how many tokens of its sequence came to the same expert before, [B, T, k]."""
    B, T, k = experts_BTk.shape
    order = zigzag_order(T)
    lies_at = jnp.zeros(T, jnp.int32).at[order].set(jnp.arange(T))
    chosen = jnp.take(experts_BTk, lies_at, axis=1).reshape(B, T * k)
    one_hot = jax.nn.one_hot(chosen, E, dtype=jnp.int32)
    before = jnp.sum((jnp.cumsum(one_hot, axis=1) - one_hot) * one_hot, axis=-1)
    return jnp.take(before.reshape(B, T, k), order, axis=1)


def dropless(
    x_BTD: jax.Array,
    experts_BTk: jax.Array,
    gates_BTk: jax.Array,
    gate_EDF: jax.Array,
    up_EDF: jax.Array,
    down_EFD: jax.Array,
) -> jax.Array:
    """Experts that take every token that comes, however many.

    A device may get all tokens of the `expert` axis, so there must be room for them: all-to-all
    with such room moves what an all-gather moves, and that is what is done. Each device then
    sorts what is for its own experts to the front (arXiv:2211.15841).
    """
    arguments = x_BTD, experts_BTk, gates_BTk, gate_EDF, up_EDF, down_EFD
    return _mapped(_dropless, arguments, divided=True)


def _mapped(
    compute: Callable[..., jax.Array], arguments: tuple[Any, ...], *, divided: bool
) -> jax.Array:
    """Calls `compute` for every device's samples and its part of the experts.

    Args:
        compute: takes the arguments' parts, and the mesh axes that divide them.
        arguments: tokens, choices, gates, and the three matrices of the experts.
        divided: whether it works on a part of each sequence where `context` divides it.
    """
    axes = free_axes([*BATCH_AXES, "context", "model"])
    if not axes:
        return compute(*arguments, axes=axes)
    expert, model, context = (
        name if name in axes else None for name in ("expert", "model", "context")
    )
    batch = tuple(axis for axis in axes if axis in BATCH_AXES) or None
    out = PartitionSpec(batch, context)
    tokens = out if divided else PartitionSpec(batch)
    wide, narrow = PartitionSpec(expert, None, model), PartitionSpec(expert, model, None)
    in_specs = tokens, tokens, tokens, wide, wide, narrow
    return manual(functools.partial(compute, axes=axes), axes, in_specs, out)(*arguments)


def _dropless(
    x_BTD: jax.Array,
    experts_BTk: jax.Array,
    gates_BTk: jax.Array,
    gate_EDF: jax.Array,
    up_EDF: jax.Array,
    down_EFD: jax.Array,
    *,
    axes: tuple[str, ...],
) -> jax.Array:
    k, E, shape = experts_BTk.shape[-1], gate_EDF.shape[0], x_BTD.shape
    x_MD, experts_Mk, gates_Mk = (
        a.reshape(-1, a.shape[-1]) for a in (x_BTD, experts_BTk, gates_BTk)
    )
    if "expert" in axes:
        gather = functools.partial(jax.lax.all_gather, axis_name="expert", tiled=True)
        x_MD, experts_Mk, gates_Mk = gather(x_MD), gather(experts_Mk), gather(gates_Mk)
        experts_Mk = experts_Mk - jax.lax.axis_index("expert") * E
    mine_S = ((experts_Mk >= 0) & (experts_Mk < E)).ravel()
    expert_S = jnp.where(mine_S, experts_Mk.ravel(), E)
    order_S = jnp.argsort(expert_S, stable=True)
    sizes_E = jnp.bincount(expert_S, length=E).astype(jnp.int32)
    x_SD = x_MD[order_S // k]
    gated_SF = jax.lax.ragged_dot(x_SD, gate_EDF, sizes_E)
    h_SF = jax.lax.ragged_dot(x_SD, up_EDF, sizes_E)
    h_SF *= nnx.silu(gated_SF)
    y_SD = jax.lax.ragged_dot(h_SF, down_EFD, sizes_E)
    weight_S = gates_Mk.ravel()[order_S].astype(y_SD.dtype)
    # Rows behind the last group are whatever the kernel left there.
    y_SD = jnp.where(mine_S[order_S][:, None], y_SD * weight_S[:, None], 0)
    y_MD = jnp.zeros_like(x_MD).at[order_S // k].add(y_SD)
    if "expert" in axes:
        y_MD = jax.lax.psum_scatter(y_MD, "expert", tiled=True)
    if "model" in axes:
        y_MD = jax.lax.psum(y_MD, "model")
    return y_MD.reshape(shape)
