"""Ring attention against whole attention, on eight devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from exajax import MeshSpec
from exajax.models.attention import attention, zigzag, zigzag_order
from exajax.spmd.sharding import use_mesh

rng = np.random.default_rng(0)
B, T, N, K, H = 4, 32, 8, 4, 8
QKV = tuple(rng.normal(size=(B, T, heads, H)).astype(np.float32) for heads in (N, K, K))
WEIGHT = rng.normal(size=(B, T, N, H)).astype(np.float32)
DOCUMENTS = np.cumsum(rng.random((B, T)) < 0.15, axis=1).astype(np.int32)


def whole(q, k, v, documents):
    return attention(q, k, v, flash=False, segments_BT=documents)


def ring(mesh, q, k, v, documents):
    with use_mesh(mesh):
        back = np.argsort(zigzag_order(T))
        documents = None if documents is None else zigzag(documents)
        mixed = attention(zigzag(q), zigzag(k), zigzag(v), flash=False, segments_BT=documents)
        return jnp.take(mixed, back, axis=1)


def value_and_gradients(function, documents):
    def loss(*qkv):
        return jnp.sum(function(*qkv, documents) * WEIGHT)

    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2)))(*map(jnp.array, QKV))


@pytest.mark.parametrize("documents", [None, DOCUMENTS], ids=["one document", "packed"])
@pytest.mark.parametrize(
    "mesh",
    [MeshSpec(context=2), MeshSpec(context=8), MeshSpec(data=2, context=2, model=2)],
    ids=str,
)
def test_a_ring_is_whole_attention_with_grouped_heads(mesh, documents):
    built = mesh.build(jax.devices()[: mesh.devices])
    documents = None if documents is None else jnp.array(documents)
    value, gradients = value_and_gradients(whole, documents)
    got, got_gradients = value_and_gradients(lambda *args: ring(built, *args), documents)
    np.testing.assert_allclose(got, value, rtol=1e-5)
    for ours, theirs in zip(got_gradients, gradients, strict=True):
        assert np.linalg.norm(ours - theirs) <= 1e-5 * np.linalg.norm(theirs)


def test_a_ring_in_bf16_is_as_near_as_bf16_is():
    built = MeshSpec(context=4).build(jax.devices()[:4])
    narrow = [jnp.array(x, jnp.bfloat16) for x in QKV]
    exact = whole(*map(jnp.array, QKV), None)
    got = jax.jit(lambda *qkv: ring(built, *qkv, None))(*narrow)
    assert got.dtype == jnp.bfloat16
    assert np.linalg.norm(got.astype(np.float32) - exact) <= 1e-2 * np.linalg.norm(exact)


def test_a_document_sees_nothing_of_the_others():
    changed = [x.copy() for x in QKV]
    other = DOCUMENTS[0] != DOCUMENTS[0, 20]
    for x in changed:
        x[0, other] = rng.normal(size=x[0, other].shape)
    before, after = (whole(*map(jnp.array, x), jnp.array(DOCUMENTS)) for x in (QKV, changed))
    np.testing.assert_allclose(before[0, ~other], after[0, ~other], atol=1e-6)
    assert not np.allclose(before[0, other], after[0, other], atol=1e-3)


def test_every_device_of_a_ring_has_an_early_and_a_late_chunk():
    with use_mesh(MeshSpec(context=4).build(jax.devices()[:4])):
        order = zigzag_order(16).reshape(4, 2, 2)
    assert sorted(order.ravel()) == list(range(16))
    for device, (early, late) in enumerate(order):
        assert (early[0] // 2, late[0] // 2) == (device, 7 - device)
