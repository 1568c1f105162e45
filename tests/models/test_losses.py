"""Losses against numpy in double precision."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from exajax import MeshSpec
from exajax.models.losses import accuracy, cross_entropy
from exajax.spmd.sharding import constrain, use_mesh

rng = np.random.default_rng(0)
LOGITS = rng.normal(size=(2, 3, 8)).astype(np.float32) * 5
TARGETS = rng.integers(0, 7, (2, 3))


def log_softmax(logits):
    logits = logits[..., :7].astype(np.float64)  # the eighth pads
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def picked():
    return np.take_along_axis(log_softmax(LOGITS), TARGETS[..., None], -1)


def test_cross_entropy_is_the_mean_negative_log_likelihood():
    assert cross_entropy(LOGITS, TARGETS, 7) == pytest.approx(-picked().mean(), rel=1e-5)


def test_z_loss_adds_the_mean_square_of_the_log_normaliser():
    squared = np.square(np.log(np.exp(LOGITS[..., :7].astype(np.float64)).sum(-1)))
    expected = -picked().mean() + 0.01 * squared.mean()
    assert cross_entropy(LOGITS, TARGETS, 7, z_loss=0.01) == pytest.approx(expected, rel=1e-5)


def test_smoothing_spreads_a_share_over_the_classes_and_none_over_padding():
    target = np.zeros((2, 3, 7))
    np.put_along_axis(target, TARGETS[..., None], 0.9, -1)
    target += 0.1 / 7
    expected = -(target * log_softmax(LOGITS)).sum(-1).mean()
    got = cross_entropy(LOGITS, TARGETS, 7, smoothing=0.1)
    assert got == pytest.approx(expected, rel=1e-5)


def test_a_sharded_vocabulary_gives_the_same_loss_without_being_gathered():
    mesh = MeshSpec(data=2, model=4).build(jax.devices())

    def sharded(logits, targets):
        with use_mesh(mesh):
            logits = constrain(logits, ("batch", None, "vocab"))
            return cross_entropy(logits, targets, 7, z_loss=0.01, smoothing=0.1)

    logits, targets = jnp.array(LOGITS), jnp.array(TARGETS)
    compiled = jax.jit(sharded).lower(logits, targets).compile()
    assert "all-gather" not in compiled.as_text()
    expected = cross_entropy(logits, targets, 7, z_loss=0.01, smoothing=0.1)
    assert compiled(logits, targets) == pytest.approx(float(expected), rel=1e-5)


def test_accuracy_is_the_share_of_targets_that_score_highest():
    right = LOGITS.argmax(-1)
    wrong = right.copy()
    wrong[0] = (wrong[0] + 1) % 8
    assert accuracy(LOGITS, right, 8) == 1
    assert accuracy(LOGITS, wrong, 8) == 0.5
