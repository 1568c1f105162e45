"""Packed documents: each is trained on as if it were alone in its sequence."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from exajax import MeshSpec, Recipe
from exajax.models.layers import Documents
from exajax.models.presets import PRESETS
from exajax.recipe import text_workload
from exajax.spmd.sharding import use_mesh

FAMILIES = ("gpt", "llama", "mixtral")
FIRST, SECOND, OTHER = [97, 49, 50, 51, 52, 0], [98, 53, 54, 0], [99, 53, 54, 0]


def model_of(family):
    config = dataclasses.replace(PRESETS[f"{family}-tiny"], layers=2)
    with nnx.use_eager_sharding(False):
        return config, text_workload.inference_model(config)(nnx.Rngs(0))


def losses(model, vocab, documents, targets):
    """Negative log-likelihood of every target, where there is one."""
    tokens = np.concatenate(documents).astype(np.int32)
    numbers = np.repeat(np.arange(len(documents)), [len(document) for document in documents])
    logits = model(jnp.array(tokens[None]), jnp.array(numbers[None]))[0, :, :vocab]
    nll = jax.nn.logsumexp(logits, -1) - logits[np.arange(len(targets)), np.array(targets)]
    return np.asarray(nll)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_loss_of_every_token_is_that_of_its_document_alone(family):
    config, model = model_of(family)
    first, second = (
        losses(model, config.vocab, [document], [*document[1:], 0])[:-1]
        for document in (FIRST, SECOND)
    )
    both = losses(model, config.vocab, [FIRST, SECOND], [*FIRST[1:], 0, *SECOND[1:], 0])
    np.testing.assert_allclose(both[: len(first)], first, rtol=2e-6)
    np.testing.assert_allclose(both[len(FIRST) : -1], second, rtol=2e-6)

    recipe = Recipe.of(
        config, MeshSpec(), global_batch=1, seq=10, packed=True, precision="fp32", moe="dropless"
    )
    loss = text_workload.workload(recipe, "cpu").loss.without_extra
    numbers = [0] * len(FIRST) + [1] * len(SECOND)
    for following in (SECOND, OTHER):  # what follows the end of the first does not count
        batch = {
            "inputs": jnp.array([[*FIRST, *SECOND]]),
            "targets": jnp.array([[*FIRST[1:], following[0], *SECOND[1:], -1]]),
            "segments": jnp.array([numbers]),
        }
        measured = loss(model, batch)
        assert measured.weight == len(first) + len(second)
        expected = np.mean([*first, *second])
        assert float(measured) == pytest.approx(expected, rel=2e-6)


def test_positions_begin_anew_and_lie_as_the_ring_needs_them():
    segments = jnp.array([[0, 0, 1, 1, 1, 2, 2, 2], [3, 3, 3, 3, 3, 3, 3, 3]])
    expected = np.array([[0, 1, 0, 1, 2, 0, 1, 2], [0, 1, 2, 3, 4, 5, 6, 7]])
    np.testing.assert_array_equal(Documents.of(segments).position_BT, expected)
    with use_mesh(MeshSpec(context=2).build(jax.devices()[:2])):
        laid = jax.jit(Documents.of)(segments)
    order = [0, 1, 6, 7, 2, 3, 4, 5]
    np.testing.assert_array_equal(laid.position_BT, expected[:, order])
    np.testing.assert_array_equal(laid.segment_BT, np.asarray(segments)[:, order])
