"""Mixtures against a dense reference that computes every expert for every token."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from exajax import MeshSpec, Recipe
from exajax.models.experts import ExpertWeights, Routing, dropless, imbalance, with_capacity
from exajax.models.losses import cross_entropy
from exajax.models.presets import PRESETS
from exajax.recipe import workloads
from exajax.spmd.sharding import use_mesh

rng = np.random.default_rng(0)
B, T, D, F, E, k = 8, 16, 8, 12, 8, 2
X = rng.normal(size=(B, T, D)).astype(np.float32)
GATE, UP = (rng.normal(size=(E, D, F)).astype(np.float32) for _ in range(2))
DOWN = rng.normal(size=(E, F, D)).astype(np.float32)
CHOSEN = np.stack([rng.permutation(E)[:k] for _ in range(B * T)]).reshape(B, T, k)
CROWDED = np.where(rng.random((B, T, 1)) < 0.8, np.array([3, 4]), CHOSEN)
GATES = rng.dirichlet(np.ones(k), (B, T)).astype(np.float32)
MESHES = [MeshSpec(), MeshSpec(expert=8), MeshSpec(data=2, expert=2, model=2)]


def dense(x, chosen, gates, gate, up, down, room=None):
    """Every expert for every token; of each sequence the first `room` that chose it count."""
    h = jax.nn.silu(jnp.einsum("BTD,EDF->BTEF", x, gate)) * jnp.einsum("BTD,EDF->BTEF", x, up)
    y = jnp.einsum("BTEF,EFD->BTED", h, down)
    picked = jax.nn.one_hot(chosen, E)  # BTkE
    if room is not None:
        flat = picked.reshape(B, T * k, E)
        picked = (flat * (jnp.cumsum(flat, axis=1) <= room)).reshape(picked.shape)
    return jnp.einsum("BTkE,BTk,BTED->BTD", picked, gates, y)


def routed(function, **options):
    """An implementation, called with plain arrays like `dense`."""

    def call(x, chosen, gates, *matrices):
        return function(x, Routing(chosen, gates), ExpertWeights(*matrices), **options)

    return call


def compare(function, reference, mesh, chosen):
    weight = jnp.array(rng.normal(size=X.shape), jnp.float32)

    def loss(mixture, x, gates, *matrices):
        return jnp.sum(mixture(x, jnp.array(chosen), gates, *matrices) * weight)

    def on_mesh(*args):
        with use_mesh(mesh.build(jax.devices()[: mesh.devices])):
            return loss(function, *args)

    args = tuple(map(jnp.array, (X, GATES, GATE, UP, DOWN)))
    every = tuple(range(len(args)))
    got = jax.jit(jax.value_and_grad(on_mesh, argnums=every))(*args)
    expected = jax.value_and_grad(lambda *a: loss(reference, *a), argnums=every)(*args)
    for ours, theirs in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        assert np.linalg.norm(ours - theirs) <= 1e-5 * np.linalg.norm(theirs)


@pytest.mark.parametrize("mesh", MESHES, ids=str)
@pytest.mark.parametrize("chosen", [CHOSEN, CROWDED], ids=["even", "crowded"])
def test_dropless_is_the_dense_reference(mesh, chosen):
    compare(routed(dropless), dense, mesh, chosen)


@pytest.mark.parametrize("mesh", [*MESHES, MeshSpec(context=2, expert=2)], ids=str)
@pytest.mark.parametrize("room", [3, T])
def test_an_expert_takes_the_first_of_each_sequence_and_drops_the_rest(mesh, room):
    def in_true_order(*args):
        # As `context` lays sequences out: what comes first is asked of the sequence, not of the
        # device.
        from exajax.models.attention import zigzag, zigzag_order

        x, chosen, gates, *matrices = args
        ordered = (zigzag(array) for array in (x, chosen, gates))
        y = routed(with_capacity, capacity=room)(*ordered, *matrices)
        return jnp.take(y, np.argsort(zigzag_order(T)), axis=1)

    compare(in_true_order, lambda *args: dense(*args, room=room), mesh, CROWDED)


def test_tokens_travel_to_their_experts_and_back_in_one_all_to_all_each():
    mesh = MeshSpec(expert=8).build(jax.devices())

    def forward(*args):
        with use_mesh(mesh):
            return routed(with_capacity, capacity=4)(*args)

    arrays = map(jnp.array, (X, CHOSEN, GATES, GATE, UP, DOWN))
    text = jax.jit(forward).lower(*arrays).compile().as_text()
    assert text.count(" all-to-all(") == 2


def test_held_out_text_is_measured_without_the_balancing_loss():
    recipe = Recipe.of(PRESETS["mixtral-tiny"], MeshSpec(), global_batch=2, seq=16)
    tokens = rng.integers(0, 256, (2, 17))
    batch = {"inputs": jnp.array(tokens[:, :-1]), "targets": jnp.array(tokens[:, 1:])}
    with nnx.use_eager_sharding(False):
        model = workloads.workload(recipe, "cpu").build(nnx.Rngs(0))
    measured = workloads.evaluation_metrics(recipe, "cpu")["loss"](model, batch)
    assert measured == cross_entropy(model(batch["inputs"]), batch["targets"], 256)
    assert workloads.workload(recipe, "cpu").loss(model, batch) > measured + 0.01


def test_imbalance_is_one_where_all_experts_have_equal_shares():
    even = np.stack([np.arange(2 * t, 2 * t + 2) % E for t in range(T)])[None]
    scores = jnp.full((1, T, E), 1 / E)
    assert imbalance(scores, jnp.array(even)) == pytest.approx(1)
    one = jax.nn.softmax(50.0 * jax.nn.one_hot(jnp.zeros((1, T), int), E))
    assert imbalance(one, jnp.zeros((1, T, 1), int)) == pytest.approx(E, rel=1e-3)
