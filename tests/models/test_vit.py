"""The vision transformer against plain numpy, on meshes, and what a workload of it measures."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from exajax import InputError, MeshSpec, Recipe, TrainStep
from exajax.models.attention import attention
from exajax.models.losses import cross_entropy
from exajax.models.presets import PRESETS, lookup
from exajax.models.vit import ViT, patches
from exajax.recipe import workloads

rng = np.random.default_rng(0)
SMALL = dataclasses.replace(PRESETS["vit-tiny"], name="small", layers=2, width=64, ffn=128)


def build(config=SMALL):
    with nnx.use_eager_sharding(False):
        return ViT(config, rngs=nnx.Rngs(0))


def test_patches_are_squares_row_by_row():
    images = rng.normal(size=(2, 6, 6, 3)).astype(np.float32)
    got = patches(jnp.array(images), 2)
    assert got.shape == (2, 9, 12)
    np.testing.assert_array_equal(got[1, 5], images[1, 2:4, 4:6].reshape(-1))


def test_attention_without_a_mask_is_the_plain_softmax():
    q, k, v = (rng.normal(size=(2, 5, 4, 8)).astype(np.float32) for _ in range(3))
    scores = np.einsum("btnh,bsnh->bnts", q, k) / np.sqrt(8)
    weights = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
    expected = np.einsum("bnts,bsnh->btnh", weights, v)
    got = attention(jnp.array(q), jnp.array(k), jnp.array(v), flash=False, causal=False)
    np.testing.assert_allclose(got, expected, atol=1e-5)


def test_the_first_block_sees_patches_on_both_sides_of_one():
    graph, stacked = nnx.split(build().stack.blocks)
    one = nnx.merge(graph, jax.tree.map(lambda leaf: leaf[0], stacked))
    x = jnp.array(rng.normal(size=(1, 16, 64)), jnp.float32)
    sees = jax.jit(jax.grad(lambda x: one(x, None)[0][0, 7].sum()))(x)[0]
    assert (np.abs(sees).max(axis=-1) > 1e-6).all()


def test_where_a_patch_is_changes_what_the_image_is_taken_for():
    model, image = jax.jit(build()), jnp.array(rng.normal(size=(1, 8, 8, 1)), jnp.float32)
    assert model(image).shape == (1, 16)
    assert not np.allclose(model(image), model(image[:, ::-1]), atol=1e-5)


def test_an_image_of_the_published_models_has_the_published_size():
    assert PRESETS["vit-b"].seq == PRESETS["vit-l"].seq == 196
    # Published with a class token and its position, which ours have not.
    assert PRESETS["vit-b"].parameters == 86_567_656 - 2 * 768
    assert PRESETS["vit-l"].parameters == 304_326_632 - 2 * 1024


def test_the_flops_are_those_of_the_matrices_and_the_attention():
    model = build()
    flops = 0.0
    for path, leaf in jax.tree_util.tree_leaves_with_path(nnx.to_pure_dict(nnx.state(model))):
        name = jax.tree_util.keystr(path)
        if name.endswith("['kernel']"):
            flops += 6 * leaf.size * (1 if "logits" in name else SMALL.seq)
    flops -= 2 * SMALL.seq * SMALL.patch_size * SMALL.width  # pixels have no gradient
    flops += 12 * SMALL.layers * SMALL.width * SMALL.seq**2
    assert SMALL.step_flops(3, SMALL.seq) == 3 * flops


def step_on(mesh, **options):
    recipe = Recipe.of(SMALL, mesh, global_batch=8, precision="fp32", warmup_steps=1, **options)
    devices = jax.devices()[: mesh.devices]
    return TrainStep.of(
        workloads.workload(recipe, "cpu"), mesh.build(devices), zero=3, precision="fp32"
    )


def batch(number):
    random = np.random.default_rng(number)
    return {
        "images": random.normal(size=(8, 8, 8, 1)).astype(np.float32),
        "labels": random.integers(0, 10, 8).astype(np.int32),
    }


def trained(step):
    state, losses = step.init(np.uint32(0)), []
    for number in range(3):
        placed = {k: jax.device_put(v, step.batch[k].sharding) for k, v in batch(number).items()}
        state, metrics = step.update(state, placed)
        losses.append(float(metrics["loss"]))
    return losses


def test_a_mesh_trains_like_one_device():
    options = {"label_smoothing": 0.1, "z_loss": 1e-3}
    expected = trained(step_on(MeshSpec(), **options))
    got = trained(step_on(MeshSpec(data=2, fsdp=2, model=2), **options))
    np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_patches_that_the_mesh_does_not_divide_stay_whole():
    narrow = dataclasses.replace(SMALL, image=6, seq=9)
    mesh = MeshSpec(data=2, model=4)
    recipe = Recipe.of(narrow, mesh, precision="fp32")
    step = TrainStep.of(
        workloads.workload(recipe, "cpu"), mesh.build(jax.devices()), precision="fp32"
    )
    zeros = {k: jnp.zeros(leaf.shape, leaf.dtype) for k, leaf in step.batch.items()}
    placed = {k: jax.device_put(v, step.batch[k].sharding) for k, v in zeros.items()}
    assert np.isfinite(step.evaluate(step.init(np.uint32(0)).params, placed))


def test_held_out_images_are_measured_by_accuracy_and_by_the_loss_without_its_regularisers():
    recipe = Recipe.of(SMALL, MeshSpec(), label_smoothing=0.1, z_loss=1e-3)
    model, images = build(), batch(0)
    logits = model(jnp.array(images["images"]))
    measures = workloads.evaluation_metrics(recipe, "cpu")
    assert measures["loss"](model, images) == cross_entropy(logits, images["labels"], SMALL.vocab)
    expected = np.mean(np.argmax(logits[:, : SMALL.vocab], -1) == images["labels"])
    assert measures["accuracy"](model, images) == pytest.approx(expected)
    assert "loss" not in workloads.evaluation_metrics(Recipe.of(SMALL, MeshSpec()), "cpu")
    assert not workloads.evaluation_metrics(Recipe.of(PRESETS["gpt-tiny"], MeshSpec()), "cpu")


def test_a_sequence_other_than_the_patches_is_refused():
    with pytest.raises(InputError, match="seq: it is 8, and images of small have 16 patches"):
        Recipe.of(SMALL, MeshSpec(), seq=8)
    with pytest.raises(InputError, match="seq"):
        Recipe.of(SMALL, MeshSpec(), seq=32)


FILE = {"family": '"vit"', "layers": 2, "width": 64, "heads": 4, "ffn": 128, "vocab": 10}
IMAGE = {"image": 32, "patch": 4, "channels": 3}


def write(path, **fields):
    path.write_text("\n".join(f"{key} = {value}" for key, value in (FILE | fields).items()))
    return str(path)


def test_a_file_of_dimensions_needs_no_seq(tmp_path):
    assert lookup(write(tmp_path / "mine.toml", **IMAGE)).seq == 64


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        (IMAGE | {"patch": 5}, "an image that the patch divides"),
        ({"image": 32}, "give a vit all three"),
        (IMAGE | {"image": '"32"'}, "give a vit all three"),
        (IMAGE | {"seq": 63}, "leave it out, or give 64"),
    ],
)
def test_a_wrong_file_of_dimensions_says_what_to_give(tmp_path, fields, says):
    with pytest.raises(InputError, match=says):
        lookup(write(tmp_path / "mine.toml", **fields))
