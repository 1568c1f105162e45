"""Attention: plain, fused, or as a ring over a divided sequence, behind one function.

Shapes: B batch, T sequence, S key sequence, N query heads, K kv heads, G = N / K query heads of a
kv head, H head size, C devices over which the sequence is divided. In the ring, t and s are the
queries and keys of one of the two chunks of a device.
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
"""Score of a masked key: finite, so that a row in which all are masked does not become NaN."""


def attention(
    q_BTNH: jax.Array,
    k_BTKH: jax.Array,
    v_BTKH: jax.Array,
    *,
    flash: bool,
    recompute_scores: bool = False,
    causal: bool = True,
    segments_BT: jax.Array | None = None,
) -> jax.Array:
    """Attention with grouped query heads.

    On a mesh every device computes its own samples and heads. Where `context` divides the sequence,
    causal attention is a ring (arXiv:2310.01889), with the sequence in the order of `zigzag`.

    Args:
        q_BTNH: queries.
        k_BTKH: keys, K dividing N.
        v_BTKH: values.
        flash: whether to use the fused cuDNN kernel, which never writes the scores.
        recompute_scores: whether the backward pass of plain attention recomputes the scores instead
            of saving them; the fused kernel and the ring always do.
        causal: whether a position attends only to itself and those before it.
        segments_BT: number of the document of every position, which attends only to its own; None
            for one document.

    Returns:
        The weighted values of every query head, [B, T, N, H].
    """
    ring = causal and axis_size("context") > 1
    axes = free_axes(AXES)
    full = functools.partial(
        _full_sequence, flash=flash, recompute_scores=recompute_scores, causal=causal
    )
    local = _ring if ring else full
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


def _full_sequence(
    q_BTNH: jax.Array,
    k_BTKH: jax.Array,
    v_BTKH: jax.Array,
    segments_BT: jax.Array | None,
    *,
    flash: bool,
    recompute_scores: bool,
    causal: bool,
) -> jax.Array:
    if flash:
        return jax.nn.dot_product_attention(
            q_BTNH, k_BTKH, v_BTKH, is_causal=causal, implementation="cudnn"
        )
    visible_B11TS = None
    if causal:
        index_T = jnp.arange(q_BTNH.shape[1])
        visible_B11TS = (index_T[:, None] >= index_T)[None, None, None]
    if segments_BT is not None:
        same_B11TS = (segments_BT[:, :, None] == segments_BT[:, None, :])[:, None, None]
        visible_B11TS = same_B11TS if visible_B11TS is None else same_B11TS & visible_B11TS
    # In the loop over layers, XLA cannot merge the recomputation with the forward pass.
    core = jax.checkpoint(_unfused, prevent_cse=False) if recompute_scores else _unfused
    return core(q_BTNH, k_BTKH, v_BTKH, visible_B11TS)


def _unfused(
    q_BTNH: jax.Array, k_BTKH: jax.Array, v_BTKH: jax.Array, visible_B11TS: jax.Array | None
) -> jax.Array:
    """Attention as matrix products, without transposing a [T, T] array in either pass.

    Keys and values are stored with tokens last, so that their gradients are products with the
    untransposed scores. The softmax is normalised after the product with the values, on H numbers
    instead of T (as in arXiv:2205.14135).
    """
    B, T, N, H = q_BTNH.shape
    K = k_BTKH.shape[2]
    grouped_BTKGH = (q_BTNH * H**-0.5).reshape(B, T, K, N // K, H)
    q_BKGTH = grouped_BTKGH.transpose(0, 2, 3, 1, 4)
    k_BKHS, v_BKHS = (x_BTKH.transpose(0, 2, 3, 1) for x_BTKH in (k_BTKH, v_BTKH))
    product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
    score_BKGTS = product("BKGTH,BKHS->BKGTS", q_BKGTH, k_BKHS)
    if visible_B11TS is not None:
        score_BKGTS = jnp.where(visible_B11TS, score_BKGTS, MASKED)
    largest_BKGT1 = jax.lax.stop_gradient(score_BKGTS.max(axis=-1, keepdims=True))
    weight_BKGTS = jnp.exp(score_BKGTS - largest_BKGT1)
    sum_BKGT1 = weight_BKGTS.sum(axis=-1, keepdims=True)
    mixed_BKGTH = product("BKGTS,BKHS->BKGTH", weight_BKGTS.astype(v_BTKH.dtype), v_BKHS)
    mixed_BKGTH = (mixed_BKGTH / sum_BKGT1).astype(q_BTNH.dtype)
    return mixed_BKGTH.transpose(0, 3, 1, 2, 4).reshape(B, T, N, H)


def zigzag_order(seq: int) -> np.ndarray:
    """Original index of each position of a sequence in zigzag order, [T].

    Of 2C chunks device i has chunks i and 2C-1-i, so that all have equal work under a causal mask.
    """
    ways = axis_size("context")
    if ways == 1:
        return np.arange(seq)
    chunks = np.arange(seq).reshape(2 * ways, -1)
    return np.concatenate([chunks[[i, 2 * ways - 1 - i]].reshape(-1) for i in range(ways)])


def zigzag(x_BT: jax.Array) -> jax.Array:
    """A sequence in the order that the ring needs; unchanged where `context` does not divide it."""
    if axis_size("context") == 1:
        return x_BT
    return jnp.take(x_BT, zigzag_order(x_BT.shape[1]), axis=1, unique_indices=True)


def _ring(q: jax.Array, k: jax.Array, v: jax.Array, segments: jax.Array | None) -> jax.Array:
    """Attention of a device's two chunks of queries to all keys, which travel round a ring."""
    b, T, N, H = q.shape
    K = k.shape[2]
    q_b2tKGH = q.reshape(b, 2, T // 2, K, N // K, H)
    k_b2sKH, v_b2sKH = (x.reshape(b, 2, T // 2, K, H) for x in (k, v))
    documents_b2t = None if segments is None else segments.reshape(b, 2, T // 2)
    mixed_b2tKGH = _attend(q_b2tKGH, k_b2sKH, v_b2sKH, documents_b2t)
    return mixed_b2tKGH.reshape(b, T, N, H).astype(q.dtype)


class _ChunkPair(NamedTuple):
    """One of a device's two chunks of queries, and one of two chunks of keys, by index."""

    query: Any
    key: Any
    causal: bool = False


class _KeyBlock(NamedTuple):
    """The two chunks of keys and values that are on a device at a step of the ring."""

    k_b2sKH: jax.Array
    v_b2sKH: jax.Array
    documents_b2s: jax.Array | None


@jax.custom_vjp
def _attend(q: jax.Array, k: jax.Array, v: jax.Array, documents: jax.Array | None) -> jax.Array:
    return _forward(q, k, v, documents)[0]


def _forward(q: Any, k: Any, v: Any, documents: Any) -> tuple[jax.Array, Any]:
    """The weighted values, fp32 [b, 2, t, K, G, H], and the residuals of the backward pass."""

    def add_block(totals: Any, _: Any, keys: _KeyBlock, pair: _ChunkPair) -> Any:
        # Online softmax: `lse` is the log of the sum of exp(score) so far (arXiv:2205.14135).
        mixed, lse = totals
        scores_bKGts = _scores(q, keys, documents, pair)
        block_lse_bKGt = jax.nn.logsumexp(scores_bKGts, axis=-1)
        share_bKGts = jnp.exp(scores_bKGts - block_lse_bKGt[..., None])
        block_mixed = _fp32_product("bKGts,bsKH->btKGH", share_bKGts, keys.v_b2sKH[:, pair.key])
        block_lse_btKG = jnp.moveaxis(block_lse_bKGt, 3, 1)
        old_lse_btKG = lse[:, pair.query]
        new_lse_btKG = jnp.logaddexp(old_lse_btKG, block_lse_btKG)
        new_mixed = (
            mixed[:, pair.query] * jnp.exp(old_lse_btKG - new_lse_btKG)[..., None]
            + block_mixed * jnp.exp(block_lse_btKG - new_lse_btKG)[..., None]
        )
        return (
            mixed.at[:, pair.query].set(new_mixed),
            lse.at[:, pair.query].set(new_lse_btKG),
        ), ()

    zero = jnp.zeros(q.shape, jnp.float32), jnp.full(q.shape[:-1], MASKED, jnp.float32)
    (mixed, lse), _ = _around_the_ring(add_block, zero, (), _KeyBlock(k, v, documents))
    return mixed, (q, k, v, documents, mixed, lse)


def _backward(saved: Any, d_mixed: jax.Array) -> Any:
    """The gradients: the keys travel round the ring once more, and their gradients with them."""
    q, k, v, documents, mixed, lse = saved
    d_mixed = d_mixed.astype(jnp.float32)
    # Softmax's backward subtracts, for each query, the mean of the gradient under the weights.
    mean_b2tKG = jnp.sum(d_mixed * mixed, axis=-1)
    scale = q.shape[-1] ** -0.5

    def add_block(dq: Any, d_keys: Any, keys: _KeyBlock, pair: _ChunkPair) -> Any:
        dk, dv = d_keys
        column = functools.partial(_query_column, pair)
        share_bKGts = jnp.exp(_scores(q, keys, documents, pair) - column(lse))
        d_chunk = d_mixed[:, pair.query]
        d_share_bKGts = _fp32_product("btKGH,bsKH->bKGts", d_chunk, keys.v_b2sKH[:, pair.key])
        d_scores_bKGts = share_bKGts * (d_share_bKGts - column(mean_b2tKG)) * scale
        block_dq = _fp32_product("bKGts,bsKH->btKGH", d_scores_bKGts, keys.k_b2sKH[:, pair.key])
        block_dk = _fp32_product("bKGts,btKGH->bsKH", d_scores_bKGts, q[:, pair.query])
        block_dv = _fp32_product("bKGts,btKGH->bsKH", share_bKGts, d_chunk.astype(q.dtype))
        dq = dq.at[:, pair.query].add(block_dq)
        return dq, (dk.at[:, pair.key].add(block_dk), dv.at[:, pair.key].add(block_dv))

    d_keys = jnp.zeros(k.shape, jnp.float32), jnp.zeros(v.shape, jnp.float32)
    dq = jnp.zeros(q.shape, jnp.float32)
    dq, (dk, dv) = _around_the_ring(add_block, dq, d_keys, _KeyBlock(k, v, documents))
    return dq.astype(q.dtype), dk.astype(k.dtype), dv.astype(v.dtype), None


_attend.defvjp(_forward, _backward)


def _around_the_ring(
    add_block: Callable[..., Any], totals: Any, travelling: Any, own: _KeyBlock
) -> tuple[Any, Any]:
    """Sends every device's keys to every device, and combines each block with the queries there.

    The next block is sent while the present one is computed on.

    Args:
        add_block: `add_block(totals, travelling, keys, pair)` returns both, updated for a pair of
            chunks.
        totals: arrays that stay on their device.
        travelling: arrays that travel with the keys, and return with them.
        own: this device's keys and values.

    Returns:
        The final `totals` and `travelling`.
    """
    ways = jax.lax.axis_size("context")
    rank = jax.lax.axis_index("context")

    def send(tree: Any) -> Any:
        ring = [(i, (i + 1) % ways) for i in range(ways)]
        return jax.tree.map(lambda x: jax.lax.ppermute(x, "context", ring), tree)

    def add_pairs(
        totals: Any, travelling: Any, keys: _KeyBlock, pairs: Sequence[_ChunkPair]
    ) -> tuple[Any, Any]:
        for pair in pairs:
            totals, travelling = add_block(totals, travelling, keys, pair)
        return totals, send(travelling)

    def visible_pairs(distance: jax.Array) -> list[_ChunkPair]:
        # To keys of an earlier device, both chunks of queries attend to the first chunk of keys. To
        # keys of a later one, the second chunk of queries attends to both.
        chunk = jnp.where(distance > rank, 1, 0)
        return [_ChunkPair(1, 0), _ChunkPair(chunk, chunk)]

    def step(carry: Any, distance: jax.Array) -> tuple[Any, None]:
        totals, travelling, keys = carry
        next_keys = send(keys)
        return (*add_pairs(totals, travelling, keys, visible_pairs(distance)), next_keys), None

    keys = send(own)
    own_pairs = [_ChunkPair(0, 0, True), _ChunkPair(1, 1, True), _ChunkPair(1, 0)]
    totals, travelling = add_pairs(totals, travelling, own, own_pairs)
    carry, _ = jax.lax.scan(step, (totals, travelling, keys), jnp.arange(1, ways - 1))
    totals, travelling, keys = carry
    return add_pairs(totals, travelling, keys, visible_pairs(jnp.int32(ways - 1)))


def _scores(
    q: jax.Array, keys: _KeyBlock, documents: jax.Array | None, pair: _ChunkPair
) -> jax.Array:
    """Scaled and masked scores of a pair of chunks, fp32 [b, K, G, t, s]."""
    scores = _fp32_product("btKGH,bsKH->bKGts", q[:, pair.query], keys.k_b2sKH[:, pair.key])
    scores *= q.shape[-1] ** -0.5
    if pair.causal:
        scores = jnp.where(jnp.tri(scores.shape[-1], dtype=bool), scores, MASKED)
    if documents is not None and keys.documents_b2s is not None:
        of_queries, of_keys = documents[:, pair.query], keys.documents_b2s[:, pair.key]
        same_bts = of_queries[:, :, None] == of_keys[:, None, :]
        scores = jnp.where(same_bts[:, None, None], scores, MASKED)
    return scores


def _query_column(pair: _ChunkPair, x_b2tKG: jax.Array) -> jax.Array:
    """A number for each query, in a shape that broadcasts with its scores, [b, K, G, t, 1]."""
    return jnp.moveaxis(x_b2tKG[:, pair.query], 1, 3)[..., None]


def _fp32_product(subscripts: str, x: jax.Array, y: jax.Array) -> jax.Array:
    """Matmul in the narrower type of the two, summed in fp32."""
    narrow = min(x.dtype, y.dtype, key=lambda dtype: dtype.itemsize)
    return jnp.einsum(
        subscripts, x.astype(narrow), y.astype(narrow), preferred_element_type=jnp.float32
    )
