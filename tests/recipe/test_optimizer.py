"""Optimizers on stacked parameters against optax on one matrix after another; schedules."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from exajax import MeshSpec, Recipe
from exajax.models.presets import PRESETS
from exajax.recipe.matrix_optimizers import (
    MatrixAxes,
    matrix_axes,
    scale_by_factored_rms,
    scale_by_muon,
)
from exajax.recipe.optimizer import describe_new_horizon, schedule
from exajax.recipe.text_workload import FAMILIES
from exajax.train.reporting import changed_schedule
from exajax.train.sinks.records import JsonLines

rng = np.random.default_rng(0)
NAMES = {
    "query": ("layers", "embed", "heads", "head"),
    "out": ("layers", "heads", "head", "embed"),
    "experts": ("layers", "experts", "embed", "mlp"),
    "router": ("layers", "embed", "experts"),
    "bias": ("layers", "mlp"),
    "logits": ("embed", "vocab"),
    "norm": ("embed",),
}
SIDES = {f"['{name}']": MatrixAxes.of(names, name == "bias") for name, names in NAMES.items()}
SHAPES = {
    "query": (3, 128, 4, 32),
    "out": (3, 4, 32, 128),
    "experts": (2, 3, 128, 192),
    "router": (3, 128, 8),
    "bias": (3, 192),
    "logits": (128, 256),
    "norm": (128,),
}
STACKED = {"query": 1, "out": 1, "experts": 2, "router": 1, "bias": 1, "logits": 0, "norm": 0}


def gradients(seed):
    """Returns gradients whose layers differ a thousandfold, which a shared moment would mix up."""
    random = np.random.default_rng(seed)

    def one(name, shape):
        size = 10.0 ** np.arange(shape[0]) if STACKED[name] else np.ones(shape[0])
        return jnp.array(random.normal(size=shape) * size.reshape(-1, *[1] * (len(shape) - 1)))

    return {name: one(name, shape).astype(jnp.float32) for name, shape in SHAPES.items()}


def as_matrices(name, array):
    """Returns the array as a list of what it stacks, each side of a matrix one axis."""
    axes = STACKED[name]
    singles = array.reshape(-1, *array.shape[axes:])
    if name == "out":
        return list(singles.reshape(len(singles), -1, array.shape[-1]))
    if name == "query":
        return list(singles.reshape(len(singles), array.shape[axes], -1))
    return list(singles)


def changes_of(transformation, params, sequence):
    state, changes = transformation.init(params), None
    for grads in sequence:
        changes, state = transformation.update(grads, state, params)
    return changes


def apart(transformation, name, sequence):
    """Returns the last change of every stacked matrix when each is a parameter of its own."""
    split = [dict(enumerate(as_matrices(name, grads[name]))) for grads in sequence]
    changes = changes_of(transformation, jax.tree.map(jnp.ones_like, split[0]), split)
    return [changes[i] for i in range(len(changes))]


SEQUENCE = [gradients(seed) for seed in range(3)]
PARAMS = jax.tree.map(jnp.ones_like, SEQUENCE[0])


@pytest.mark.parametrize("name", [name for name in NAMES if name != "router"])
def test_adafactor_does_to_every_matrix_what_optax_does_to_it_alone(name):
    got = changes_of(scale_by_factored_rms(SIDES), PARAMS, SEQUENCE)[name]
    alone = optax.chain(optax.scale_by_factored_rms(), optax.clip_by_block_rms(1.0))
    for ours, theirs in zip(as_matrices(name, got), apart(alone, name, SEQUENCE), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=2e-4, atol=1e-6)


def test_the_factors_of_adafactor_are_small_and_count_every_layer():
    state = scale_by_factored_rms(SIDES).init(PARAMS)
    assert state.rows["experts"].shape == (2, 3, 128, 1)
    assert state.columns["experts"].shape == (2, 3, 1, 192)
    assert state.columns["query"].shape == (3, 1, 4, 32)
    assert state.columns["router"].shape == (3, 1, 8)
    assert optax.tree.size(state) < 0.05 * optax.tree.size(PARAMS)


@pytest.mark.parametrize("name", ["query", "out", "experts", "router"])
def test_muon_orthogonalises_every_matrix_of_a_layer_on_its_own(name):
    other = optax.identity()
    got = changes_of(scale_by_muon(SIDES, other), PARAMS, SEQUENCE)[name]
    alone = optax.contrib.scale_by_muon(
        weight_dimension_numbers=lambda tree: jax.tree.map(
            lambda _: optax.contrib.MuonDimensionNumbers(), tree
        )
    )
    for ours, theirs in zip(as_matrices(name, got), apart(alone, name, SEQUENCE), strict=True):
        theirs = 0.2 * max(theirs.shape) ** 0.5 * theirs
        np.testing.assert_allclose(ours, theirs, rtol=1e-2, atol=2e-3)
        assert 0.1 < float(jnp.sqrt(jnp.mean(ours**2))) < 0.3  # as large as AdamW's


def test_muon_leaves_tables_logits_and_vectors_to_another_optimizer():
    got = changes_of(scale_by_muon(SIDES, optax.scale(7.0)), PARAMS, SEQUENCE)
    for name in ("bias", "logits", "norm"):
        np.testing.assert_allclose(got[name], 7.0 * SEQUENCE[-1][name], rtol=1e-6)


def sides_of(name):
    config = PRESETS[name]
    return matrix_axes(lambda rngs: FAMILIES[config.family](config, rngs=rngs))


def test_the_sides_are_read_from_the_names_that_a_model_gives_its_axes():
    sides = sides_of("gpt-tiny")
    block = "['stack']['blocks']"
    assert sides[f"{block}['attention']['query']['kernel']"] == MatrixAxes((1,), (2, 3), True)
    assert sides[f"{block}['attention']['out']['kernel']"] == MatrixAxes((1, 2), (3,), True)
    assert sides[f"{block}['attention']['query']['bias']"] == MatrixAxes((1, 2), (), False)
    assert sides[f"{block}['up']['kernel']"] == MatrixAxes((1,), (2,), True)
    assert sides[f"{block}['up']['bias']"] == MatrixAxes((1,), (), False)
    assert sides["['embed']['table']"] == MatrixAxes((0,), (1,), False)
    assert sides["['position']"] == MatrixAxes((0,), (1,), False)


def test_a_parameter_without_names_is_a_matrix_of_its_last_axis():
    sides = matrix_axes(lambda rngs: nnx.Linear(4, 8, rngs=rngs))
    assert sides == {
        "['kernel']": MatrixAxes((0,), (1,), False),
        "['bias']": MatrixAxes((0,), (), False),
    }


def recipe_of(steps=100, **options):
    return Recipe.of(PRESETS["gpt-tiny"], MeshSpec(), steps=steps, learning_rate=1.0, **options)


def rates(steps=100, **options):
    recipe = recipe_of(steps, **options)
    return np.array([schedule(recipe)(step) for step in range(steps)])


@pytest.mark.parametrize("name", ["cosine", "wsd", "constant"])
def test_every_schedule_warms_up_along_a_line(name):
    np.testing.assert_allclose(rates(lr_schedule=name)[:11], np.arange(11) / 10, atol=1e-6)


def test_the_schedules_end_as_their_names_say():
    steps = np.arange(100)
    cosine = 0.1 + 0.9 * 0.5 * (1 + np.cos(np.pi * (steps - 10) / 90))
    np.testing.assert_allclose(rates(lr_schedule="cosine")[10:], cosine[10:], rtol=1e-5)
    wsd = np.minimum(1.0, (100 - steps) / 20)
    np.testing.assert_allclose(rates(lr_schedule="wsd")[10:], wsd[10:], rtol=1e-5)
    np.testing.assert_allclose(rates(lr_schedule="constant")[10:], 1.0)


def test_a_run_of_few_steps_warms_up_and_falls_all_the_same():
    assert rates(steps=1, lr_schedule="wsd").tolist() == [0.0]
    few = rates(steps=6, lr_schedule="wsd", warmup_steps=5)
    np.testing.assert_allclose(few, [0.0, 0.2, 0.4, 0.6, 0.8, 1.0], atol=1e-6)


@pytest.mark.parametrize("name", ["cosine", "wsd", "constant"])
def test_a_horizon_of_its_own_holds_the_schedule_and_then_the_rate(name):
    short, held = rates(lr_schedule=name), rates(steps=250, schedule_steps=100, lr_schedule=name)
    np.testing.assert_array_equal(held[:100], short)
    end = {"cosine": 0.1, "wsd": 0.0, "constant": 1.0}[name]
    np.testing.assert_allclose(held[100:], end, atol=1e-6)


def test_another_horizon_is_said_with_the_rates_and_the_flag_that_keeps_the_old_one():
    recipe = recipe_of(steps=200)
    line = describe_new_horizon(recipe, 100, 100) or ""
    before, after = 0.1, float(schedule(recipe)(100))
    assert "now has 200 steps and had 100" in line
    assert f"step 101 gets {after:.3g} instead of {before:.3g}" in line
    assert "`schedule_steps` 100" in line
    assert after > 5 * before
    assert describe_new_horizon(recipe, 200, 100) is None
    assert describe_new_horizon(recipe_of(steps=200, schedule_steps=100), 100, 100) is None
    assert describe_new_horizon(recipe_of(steps=200, lr_schedule="constant"), 100, 100) is None


def test_the_horizon_of_a_run_is_found_in_its_history(tmp_path):
    metrics = JsonLines(tmp_path / "metrics.jsonl", 0, {"schedule_steps": 100})
    for step in range(1, 61):
        metrics.log(step, {"loss": 1.0})
    metrics.close()
    (line,) = changed_schedule(tmp_path, recipe_of(steps=200), 50)
    assert "now has 200 steps and had 100: step 51 gets" in line
    assert not changed_schedule(tmp_path, recipe_of(steps=100), 50)
    assert not changed_schedule(tmp_path, recipe_of(steps=200), 0)
    assert not changed_schedule(tmp_path / "new", recipe_of(steps=200), 0)


def test_the_horizon_does_not_make_another_job():
    assert recipe_of(steps=200, schedule_steps=100).job == recipe_of(steps=100).job
