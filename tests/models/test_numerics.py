"""Layers against plain numpy, and models against what is known of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from exajax.models.attention import attention
from exajax.models.layers import REMAT_POLICIES, ComputeOptions, rotary
from exajax.models.losses import cross_entropy
from exajax.models.presets import PRESETS
from exajax.recipe.text_workload import FAMILIES

rng = np.random.default_rng(0)


def test_attention_is_the_causal_softmax_with_shared_key_heads():
    B, T, N, K, H = 2, 5, 4, 2, 8
    q, k, v = (rng.normal(size=(B, T, heads, H)).astype(np.float32) for heads in (N, K, K))
    expected = np.zeros((B, T, N, H))
    for b in range(B):
        for n in range(N):
            group = n // (N // K)
            for t in range(T):
                scores = q[b, t, n] @ k[b, : t + 1, group].T / np.sqrt(H)
                weights = np.exp(scores - scores.max())
                expected[b, t, n] = weights / weights.sum() @ v[b, : t + 1, group]
    got = attention(jnp.array(q), jnp.array(k), jnp.array(v), flash=False)
    np.testing.assert_allclose(got, expected, atol=1e-5)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_gradients_of_attention_are_those_of_the_library(dtype):
    shapes = [(2, 16, heads, 8) for heads in (4, 2, 2, 4)]
    q, k, v, mixed = (jnp.array(rng.normal(size=shape), dtype) for shape in shapes)
    ours = jax.vjp(lambda *qkv: attention(*qkv, flash=False), q, k, v)[1](mixed)
    library = jax.nn.dot_product_attention
    theirs = jax.vjp(lambda *qkv: library(*qkv, is_causal=True), q, k, v)[1](mixed)
    tolerance = 1e-5 if dtype == jnp.float32 else 0.05
    for got, expected in zip(ours, theirs, strict=True):
        assert got.dtype == dtype
        np.testing.assert_allclose(
            got.astype(jnp.float32), expected.astype(jnp.float32), atol=tolerance
        )


def test_rotary_scores_depend_on_the_distance_alone():
    x, y = (rng.normal(size=(1, 1, 1, 16)).astype(np.float32) for _ in range(2))
    positions = 12
    xs = rotary(jnp.tile(x, (1, positions, 1, 1)), 10_000.0)[0, :, 0]
    ys = rotary(jnp.tile(y, (1, positions, 1, 1)), 10_000.0)[0, :, 0]
    scores = np.asarray(xs @ ys.T)
    for distance in range(positions):
        along = np.diagonal(scores, distance)
        np.testing.assert_allclose(along, along[0], atol=1e-4)
    np.testing.assert_allclose(np.linalg.norm(xs, axis=-1), np.linalg.norm(x), rtol=1e-5)


def build(name, remat="none"):
    config = PRESETS[name]
    with nnx.use_eager_sharding(False):
        return FAMILIES[config.family](config, ComputeOptions(remat=remat), rngs=nnx.Rngs(0))


@pytest.mark.parametrize("name", ["llama-tiny", "gpt-tiny"])
def test_a_token_sees_nothing_behind_it(name):
    model = build(name)
    tokens = rng.integers(0, 256, (1, 32))
    changed = tokens.copy()
    changed[0, 20:] = rng.integers(0, 256, 12)
    before, after = model(jnp.array(tokens)), model(jnp.array(changed))
    np.testing.assert_allclose(before[0, :20], after[0, :20], atol=1e-5)
    assert not np.allclose(before[0, 20:], after[0, 20:], atol=1e-3)


@pytest.mark.parametrize("name", ["llama-tiny", pytest.param("gpt-tiny", marks=pytest.mark.slow)])
def test_every_remat_policy_gives_the_same_gradients(name):
    tokens = jnp.array(rng.integers(0, 256, (2, 16)))

    def gradients(remat):
        graph, params = nnx.split(build(name, remat))

        def loss(params):
            return cross_entropy(nnx.merge(graph, params)(tokens[:, :-1]), tokens[:, 1:], 256)

        return jax.jit(jax.grad(loss))(params)

    reference = jax.tree.leaves(gradients("none"))
    for remat in REMAT_POLICIES:
        for ours, theirs in zip(jax.tree.leaves(gradients(remat)), reference, strict=True):
            np.testing.assert_allclose(ours, theirs, atol=2e-6)
