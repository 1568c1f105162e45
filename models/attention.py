"""Attention: one named boundary, whatever implements it and however the sequence is divided.

Shapes: B batch, T sequence, S key sequence, N query heads, K kv heads, G = N / K queries of a kv
head, H head size, C ways the sequence is divided.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from exajax.spmd.mesh import AXES, BATCH_AXES
from exajax.spmd.sharding import axis_size, free_axes, manual

MASKED = -1e30
"""Score of what may not be seen: finite, so that a row that sees nothing stays a number."""


def attention(
    q_BTNH: jax.Array,
    k_BTKH: jax.Array,
    v_BTKH: jax.Array,
    *,
    flash: bool,
    again: bool = False,
    causal: bool = True,
    segments_BT: jax.Array | None = None,
) -> jax.Array:
    """Attention with grouped heads.

    On a mesh every device works on its own samples and heads. Where `context` divides the
    sequence, causal attention is a ring (arXiv:2310.01889); its sequence lies as `zigzag` says.

    Args:
        q_BTNH: queries.
        k_BTKH: keys, K dividing N.
        v_BTKH: values.
        flash: the fused cuDNN kernel, which never writes the scores, instead of plain matmuls.
        again: whether the backward pass makes plain scores again instead of keeping them; others
            are never kept.
        causal: whether a position sees only itself and those before it.
        segments_BT: number of the document of every position; it sees only its own. None is one.

    Returns:
        The mix of values for every query head, [B, T, N, H].
    """
    ring = causal and axis_size("context") > 1
    axes = free_axes(AXES)
    local = _ring if ring else functools.partial(_whole, flash=flash, again=again, causal=causal)
    batch = tuple(axis for axis in axes if axis in BATCH_AXES)
    if q_BTNH.shape[0] % int(np.prod([axis_size(axis) for axis in batch])):
        raise ValueError(f"{q_BTNH.shape[0]} samples do not divide over {batch}")
    with jax.named_scope("attention"):
        if not axes:
            return local(q_BTNH, k_BTKH, v_BTKH, segments_BT)
        sequence = "context" if ring else None
        heads = PartitionSpec(batch or None, sequence, "model" if "model" in axes else None)
        documents = None if segments_BT is None else PartitionSpec(batch or None, sequence)
        mapped = manual(local, axes, (heads, heads, heads, documents), heads)
        return mapped(q_BTNH, k_BTKH, v_BTKH, segments_BT)


def _whole(
    q_BTNH: jax.Array,
    k_BTKH: jax.Array,
    v_BTKH: jax.Array,
    segments_BT: jax.Array | None,
    *,
    flash: bool,
    again: bool,
    causal: bool,
) -> jax.Array:
    if flash:
        return jax.nn.dot_product_attention(
            q_BTNH, k_BTKH, v_BTKH, is_causal=causal, implementation="cudnn"
        )
    seen_B11TS = None
    if causal:
        places_T = jnp.arange(q_BTNH.shape[1])
        seen_B11TS = (places_T[:, None] >= places_T)[None, None, None]
    if segments_BT is not None:
        same_B11TS = (segments_BT[:, :, None] == segments_BT[:, None, :])[:, None, None]
        seen_B11TS = same_B11TS if seen_B11TS is None else same_B11TS & seen_B11TS
    # As in a stack, the loop over layers keeps XLA from undoing it.
    core = jax.checkpoint(_unfused, prevent_cse=False) if again else _unfused
    return core(q_BTNH, k_BTKH, v_BTKH, seen_B11TS)


def _unfused(
    q_BTNH: jax.Array, k_BTKH: jax.Array, v_BTKH: jax.Array, seen_B11TS: jax.Array | None
) -> jax.Array:
    """Attention as matrix products, forward and backward without turning a [T, T] array around.

    Keys and values lie with their tokens last, so that their gradients are products with the scores
    as they stand; and the weights are divided by their sum after the mix, over H numbers in place
    of T (as in arXiv:2205.14135).
    """
    B, T, N, H = q_BTNH.shape
    K = k_BTKH.shape[2]
    grouped_BTKGH = (q_BTNH * H**-0.5).reshape(B, T, K, N // K, H)
    q_BKGTH = grouped_BTKGH.transpose(0, 2, 3, 1, 4)
    k_BKHS, v_BKHS = (x_BTKH.transpose(0, 2, 3, 1) for x_BTKH in (k_BTKH, v_BTKH))
    product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
    score_BKGTS = product("BKGTH,BKHS->BKGTS", q_BKGTH, k_BKHS)
    if seen_B11TS is not None:
        score_BKGTS = jnp.where(seen_B11TS, score_BKGTS, MASKED)
    largest_BKGT1 = jax.lax.stop_gradient(score_BKGTS.max(axis=-1, keepdims=True))
    weight_BKGTS = jnp.exp(score_BKGTS - largest_BKGT1)
    sum_BKGT1 = weight_BKGTS.sum(axis=-1, keepdims=True)
    mixed_BKGTH = product("BKGTS,BKHS->BKGTH", weight_BKGTS.astype(v_BTKH.dtype), v_BKHS)
    mixed_BKGTH = (mixed_BKGTH / sum_BKGT1).astype(q_BTNH.dtype)
    return mixed_BKGTH.transpose(0, 3, 1, 2, 4).reshape(B, T, N, H)


def zigzag_order(seq: int) -> np.ndarray:
    """Returns where each place of a divided sequence comes from, [T].

    Of 2C chunks device i holds i and 2C-1-i, so that under a causal mask all have equal work.
    """
    ways = axis_size("context")
    if ways == 1:
        return np.arange(seq)
    chunks = np.arange(seq).reshape(2 * ways, -1)
    return np.concatenate([chunks[[i, 2 * ways - 1 - i]].reshape(-1) for i in range(ways)])


def zigzag(x_BT: jax.Array) -> jax.Array:
    """Lays a sequence out for the ring; without `context` it stays as it is."""
    if axis_size("context") == 1:
        return x_BT
    return jnp.take(x_BT, zigzag_order(x_BT.shape[1]), axis=1, unique_indices=True)


def _ring(q: jax.Array, k: jax.Array, v: jax.Array, segments: jax.Array | None) -> jax.Array:
    """Attention of one device's two chunks to the whole sequence, which goes round in a ring."""
    b, T, N, H = q.shape
    K = k.shape[2]
    q_b2tKGH = q.reshape(b, 2, T // 2, K, N // K, H)
    k_b2sKH, v_b2sKH = (x.reshape(b, 2, T // 2, K, H) for x in (k, v))
    documents_b2t = None if segments is None else segments.reshape(b, 2, T // 2)
    mixed_b2tKGH = _attend(q_b2tKGH, k_b2sKH, v_b2sKH, documents_b2t)
    return mixed_b2tKGH.reshape(b, T, N, H).astype(q.dtype)


class _Pair(NamedTuple):
    """Which of a device's two chunks of queries meets which of two chunks of keys."""

    query: Any
    key: Any
    causal: bool = False


class _Keys(NamedTuple):
    """The keys and values that are visiting."""

    k_b2sKH: jax.Array
    v_b2sKH: jax.Array
    documents_b2s: jax.Array | None


@jax.custom_vjp
def _attend(q: jax.Array, k: jax.Array, v: jax.Array, documents: jax.Array | None) -> jax.Array:
    return _forward(q, k, v, documents)[0]


def _forward(q: Any, k: Any, v: Any, documents: Any) -> tuple[jax.Array, Any]:
    """Returns the mix of values, fp32 [b, 2, t, K, G, H], and what the backward pass needs."""

    def visit(state: Any, _: Any, keys: _Keys, pair: _Pair) -> Any:
        mixed, weight = state
        scores_bKGts = _scores(q, keys, documents, pair)
        here_bKGt = jax.nn.logsumexp(scores_bKGts, axis=-1)
        share_bKGts = jnp.exp(scores_bKGts - here_bKGt[..., None])
        mixed_here = _product("bKGts,bsKH->btKGH", share_bKGts, keys.v_b2sKH[:, pair.key])
        here_btKG = jnp.moveaxis(here_bKGt, 3, 1)
        before_btKG = weight[:, pair.query]
        after_btKG = jnp.logaddexp(before_btKG, here_btKG)
        joined = (
            mixed[:, pair.query] * jnp.exp(before_btKG - after_btKG)[..., None]
            + mixed_here * jnp.exp(here_btKG - after_btKG)[..., None]
        )
        return (
            mixed.at[:, pair.query].set(joined),
            weight.at[:, pair.query].set(after_btKG),
        ), ()

    nothing = jnp.zeros(q.shape, jnp.float32), jnp.full(q.shape[:-1], MASKED, jnp.float32)
    (mixed, weight), _ = _round(visit, nothing, (), _Keys(k, v, documents))
    return mixed, (q, k, v, documents, mixed, weight)


def _backward(saved: Any, d_mixed: jax.Array) -> Any:
    """The keys go round once more, and take their gradients along until they are home."""
    q, k, v, documents, mixed, weight = saved
    d_mixed = d_mixed.astype(jnp.float32)
    removed_b2tKG = jnp.sum(d_mixed * mixed, axis=-1)  # what the softmax takes off every score
    scale = q.shape[-1] ** -0.5

    def visit(dq: Any, moving: Any, keys: _Keys, pair: _Pair) -> Any:
        dk, dv = moving
        rows = functools.partial(_rows, pair)
        share_bKGts = jnp.exp(_scores(q, keys, documents, pair) - rows(weight))
        d_here = d_mixed[:, pair.query]
        d_share_bKGts = _product("btKGH,bsKH->bKGts", d_here, keys.v_b2sKH[:, pair.key])
        d_scores_bKGts = share_bKGts * (d_share_bKGts - rows(removed_b2tKG)) * scale
        dq_here = _product("bKGts,bsKH->btKGH", d_scores_bKGts, keys.k_b2sKH[:, pair.key])
        dk_here = _product("bKGts,btKGH->bsKH", d_scores_bKGts, q[:, pair.query])
        dv_here = _product("bKGts,btKGH->bsKH", share_bKGts, d_here.astype(q.dtype))
        dq = dq.at[:, pair.query].add(dq_here)
        return dq, (dk.at[:, pair.key].add(dk_here), dv.at[:, pair.key].add(dv_here))

    nothing = jnp.zeros(k.shape, jnp.float32), jnp.zeros(v.shape, jnp.float32)
    start = jnp.zeros(q.shape, jnp.float32)
    dq, (dk, dv) = _round(visit, start, nothing, _Keys(k, v, documents))
    return dq.astype(q.dtype), dk.astype(k.dtype), dv.astype(v.dtype), None


_attend.defvjp(_forward, _backward)


def _round(visit: Callable[..., Any], still: Any, moving: Any, own: _Keys) -> tuple[Any, Any]:
    """Takes every device's keys to every device.

    Args:
        visit: `visit(still, moving, keys, pair)` returns the next `still` and `moving`.
        still: stays on its device.
        moving: goes along with the keys, and comes home with them.
        own: this device's keys and values.

    The next keys are on their way while the present ones are at work.
    """
    ways = jax.lax.axis_size("context")
    rank = jax.lax.axis_index("context")

    def pass_on(tree: Any) -> Any:
        ring = [(i, (i + 1) % ways) for i in range(ways)]
        return jax.tree.map(lambda x: jax.lax.ppermute(x, "context", ring), tree)

    def meet(still: Any, moving: Any, keys: _Keys, pairs: Sequence[_Pair]) -> tuple[Any, Any]:
        for pair in pairs:
            still, moving = visit(still, moving, keys, pair)
        return still, pass_on(moving)

    def visited(distance: jax.Array) -> list[_Pair]:
        # Keys of an earlier device: both query chunks see the first key chunk. Of a later one:
        # the second query chunk sees both.
        chunk = jnp.where(distance > rank, 1, 0)
        return [_Pair(1, 0), _Pair(chunk, chunk)]

    def step(carry: Any, distance: jax.Array) -> tuple[Any, None]:
        still, moving, keys = carry
        following = pass_on(keys)
        return (*meet(still, moving, keys, visited(distance)), following), None

    keys = pass_on(own)
    still, moving = meet(still, moving, own, [_Pair(0, 0, True), _Pair(1, 1, True), _Pair(1, 0)])
    carry, _ = jax.lax.scan(step, (still, moving, keys), jnp.arange(1, ways - 1))
    still, moving, keys = carry
    return meet(still, moving, keys, visited(jnp.int32(ways - 1)))


def _scores(q: jax.Array, keys: _Keys, documents: jax.Array | None, pair: _Pair) -> jax.Array:
    """Returns the scaled scores of a pair of chunks, fp32 [b, K, G, t, s], masked."""
    scores = _product("btKGH,bsKH->bKGts", q[:, pair.query], keys.k_b2sKH[:, pair.key])
    scores *= q.shape[-1] ** -0.5
    if pair.causal:
        scores = jnp.where(jnp.tri(scores.shape[-1], dtype=bool), scores, MASKED)
    if documents is not None and keys.documents_b2s is not None:
        mine, theirs = documents[:, pair.query], keys.documents_b2s[:, pair.key]
        same_bts = mine[:, :, None] == theirs[:, None, :]
        scores = jnp.where(same_bts[:, None, None], scores, MASKED)
    return scores


def _rows(pair: _Pair, x_b2tKG: jax.Array) -> jax.Array:
    """Returns a number of every query as a column beside its scores, [b, K, G, t, 1]."""
    return jnp.moveaxis(x_b2tKG[:, pair.query], 1, 3)[..., None]


def _product(subscripts: str, x: jax.Array, y: jax.Array) -> jax.Array:
    """Matmul in the narrower type of the two, summed in fp32."""
    narrow = min(x.dtype, y.dtype, key=lambda dtype: dtype.itemsize)
    return jnp.einsum(
        subscripts, x.astype(narrow), y.astype(narrow), preferred_element_type=jnp.float32
    )
