"""The same step on one device and on meshes: the numbers must not depend on the mesh."""

import dataclasses

import jax
import numpy as np
import optax
import pytest
from flax import nnx

from exajax import InputError, MeshSpec, Recipe, TrainStep, Workload
from exajax.models.presets import PRESETS
from exajax.recipe import text_workload
from exajax.recipe.optimizer import decay_mask
from exajax.recipe.recipe import OPTIMIZERS
from exajax.spmd.step import local_bytes

STEPS = 3


def small(family="llama", layers=2):
    """A model of a few narrow layers; every mesh of eight devices divides it."""
    config = PRESETS[f"{family}-tiny"]
    return dataclasses.replace(config, name="small", layers=layers, width=64, ffn=128, seq=32)


def step_on(mesh, family="llama", zero=3, layers=2, **options):
    recipe = Recipe.of(
        small(family, layers),
        mesh,
        global_batch=8,
        precision="fp32",
        steps=STEPS,
        warmup_steps=1,
        zero=zero,
        **options,
    )
    built = mesh.build(jax.devices()[: mesh.devices])
    return TrainStep.of(text_workload.workload(recipe, "cpu"), built, **recipe.step_options)


def trained(step):
    """Returns losses and final parameters of a few steps on fixed batches."""
    state, losses = step.init(np.uint32(0)), []
    for number in range(STEPS):
        tokens = np.random.default_rng(number).integers(0, 256, (8, 33)).astype(np.int32)
        batch = {"inputs": tokens[:, :-1], "targets": tokens[:, 1:]}
        placed = {k: jax.device_put(v, step.batch[k].sharding) for k, v in batch.items()}
        state, metrics = step.update(state, placed)
        losses.append(float(metrics["loss"]))
    return losses, jax.device_get(state.params)


def assert_same(got, expected, tolerance=1e-5):
    """Compares by each tensor's norm, which rounding scales with."""
    for ours, theirs in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        assert np.linalg.norm(ours - theirs) <= tolerance * max(np.linalg.norm(theirs), 1e-3)


@pytest.mark.parametrize(
    ("mesh", "options"),
    [
        (MeshSpec(data=2, fsdp=2, model=2), {}),
        (MeshSpec(context=2, expert=2, pipe=2), {}),
        (MeshSpec(pipe=2), {"schedule": "interleaved", "interleave": 2}),
    ],
    ids=str,
)
def test_any_mesh_starts_from_the_same_parameters(mesh, options):
    one, many = (
        step_on(m, "mixtral", layers=4, **o) for m, o in ((MeshSpec(), {}), (mesh, options))
    )
    got = jax.device_get(many.init(np.uint32(3)).params)
    expected = jax.device_get(one.init(np.uint32(3)).params)
    for ours, theirs in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(ours.reshape(theirs.shape), theirs)


def test_each_zero_level_shards_more_and_changes_no_number():
    mesh = MeshSpec(data=8)
    steps = {zero: step_on(mesh, zero=zero) for zero in range(4)}
    optimizer = {zero: local_bytes(step.state.optimizer) for zero, step in steps.items()}
    parameters = {zero: local_bytes(step.state.params) for zero, step in steps.items()}
    assert optimizer[0] > 7.5 * optimizer[1]
    assert optimizer[1] == optimizer[2] == optimizer[3]
    assert parameters[0] == parameters[1] == parameters[2] > 7.5 * parameters[3]
    expected = trained(steps[0])
    for zero in (1, 2, 3):
        losses, params = trained(steps[zero])
        np.testing.assert_allclose(losses, expected[0], rtol=1e-5)
        assert_same(params, expected[1], 2e-4)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_every_optimizer_trains_on_a_mesh_like_on_one_device_and_shards_its_state(optimizer):
    one = step_on(MeshSpec(), optimizer=optimizer)
    many = step_on(MeshSpec(data=2, fsdp=2, model=2), optimizer=optimizer)
    # A factor of Adafactor's is divided by the axes of one side of its matrix.
    ways = 2 if optimizer == "adafactor" else 7
    assert local_bytes(one.state.optimizer) > ways * local_bytes(many.state.optimizer)
    (expected_losses, expected), (losses, params) = trained(one), trained(many)
    np.testing.assert_allclose(losses, expected_losses, rtol=1e-5)
    assert_same(params, expected, 2e-4)


def test_moments_of_another_rank_lie_as_what_is_left_of_their_parameter():
    workload = Workload(
        build=lambda rngs: nnx.Linear(
            256, 512, rngs=rngs, kernel_metadata={"out_sharding": ("embed", "mlp")}
        ),
        loss=lambda model, batch: model(batch["x"]).sum(),
        batch={"x": jax.ShapeDtypeStruct((8, 256), np.float32)},
        optimizer=optax.adafactor(0.1),
    )
    step = TrainStep.of(workload, MeshSpec(4, 1, 2).build(jax.devices()))
    factors = step.state.optimizer[0]
    lie = {
        name: (leaf["kernel"].shape, leaf["kernel"].sharding.shard_shape(leaf["kernel"].shape))
        for name, leaf in (("row", factors.v_row), ("column", factors.v_col), ("none", factors.v))
    }
    assert lie == {"row": ((256,), (64,)), "column": ((512,), (256,)), "none": ((1,), (1,))}
    state = step.init(np.uint32(0))
    placed = jax.device_put(np.ones((8, 256), np.float32), step.batch["x"].sharding)
    step.update(state, {"x": placed})


def test_the_second_step_compiles_nothing():
    step = step_on(MeshSpec(data=2, fsdp=2, model=2))
    trained(step)
    assert step.update._cache_size() == 1


def test_precision_changes_the_passes_and_not_the_masters():
    recipe = Recipe.of(small(), MeshSpec(), global_batch=8)
    step = TrainStep.of(text_workload.workload(recipe, "cpu"), MeshSpec().build(jax.devices()[:1]))
    text = step.update.lower(step.state, step.batch).as_text()
    assert "bf16" in text
    assert {leaf.dtype for leaf in jax.tree.leaves(step.state.params)} == {np.dtype("float32")}


def test_a_batch_that_the_mesh_does_not_divide_is_refused_and_not_replicated():
    recipe = Recipe.of(small(), MeshSpec(), global_batch=6)
    with pytest.raises(InputError, match="6 samples do not divide into the 4 parts"):
        TrainStep.of(
            text_workload.workload(recipe, "cpu"), MeshSpec(data=4).build(jax.devices()[:4])
        )


@pytest.mark.parametrize("family", ["llama", "gpt"])
def test_vectors_do_not_decay_however_they_are_stacked(family):
    params = step_on(MeshSpec(), family).state.params
    for path, decayed in jax.tree_util.tree_leaves_with_path(decay_mask(params)):
        name = jax.tree_util.keystr(path)
        assert decayed == (not name.endswith(("['scale']", "['bias']"))), name


def test_a_module_with_other_state_is_refused():
    workload = Workload(
        build=lambda rngs: nnx.BatchNorm(4, rngs=rngs),
        loss=lambda model, batch: model(batch["x"]).sum(),
        batch={"x": jax.ShapeDtypeStruct((8, 4), np.float32)},
        optimizer=optax.sgd(0.1),
    )
    with pytest.raises(InputError, match=r"not nnx\.Param"):
        TrainStep.of(workload, MeshSpec().build(jax.devices()[:1]))


def rated(optimizer, learning_rate=None, **layout):
    """Rates that three updates return, None where they do not."""
    workload = Workload(
        build=lambda rngs: {"w": np.ones(4, np.float32)},
        loss=lambda params, batch: (batch["x"] * params["w"]).mean(),
        batch={"x": jax.ShapeDtypeStruct((8, 4), np.float32)},
        optimizer=optimizer,
        learning_rate=learning_rate,
    )
    step = TrainStep.of(workload, MeshSpec().build(jax.devices()[:1]), precision="fp32", **layout)
    state, rates = step.init(np.uint32(0)), []
    for factor in (1.0, np.nan, 1.0):
        state, metrics = step.update(state, {"x": np.full((8, 4), factor, np.float32)})
        rates.append(metrics.get("learning_rate"))
    return rates if None in rates else [float(rate) for rate in rates]


def test_an_update_returns_the_learning_rate_that_it_used_where_that_is_known():
    falling = optax.linear_schedule(0.3, 0.0, 3)
    by_schedule = [pytest.approx(rate) for rate in (0.3, 0.2, 0.1)]
    assert rated(optax.adam(falling), falling) == by_schedule
    assert rated(optax.inject_hyperparams(optax.sgd)(learning_rate=falling)) == by_schedule
    assert rated(optax.adam(falling)) == [None] * 3
    # A skipped update leaves the schedule where it is.
    skipping = rated(optax.adam(falling), falling, skip_bad=True)
    assert skipping == [pytest.approx(rate) for rate in (0.3, 0.2, 0.2)]


def test_a_recipes_update_returns_the_rate_of_its_schedule():
    step = step_on(MeshSpec(), layers=1)
    state = step.init(np.uint32(0))
    tokens = np.zeros((8, 32), np.int32)
    for expected in (0.0, 3e-4):  # one step of warm-up
        state, metrics = step.update(state, {"inputs": tokens, "targets": tokens})
        assert float(metrics["learning_rate"]) == pytest.approx(expected)
