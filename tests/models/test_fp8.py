"""Products in fp8: how close they are, what trains with them, and what a GPU makes of them."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import SingleDeviceSharding

import exajax
from exajax import InputError, MeshSpec, Recipe, TrainStep, load_cluster
from exajax.models import fp8
from exajax.models.presets import PRESETS
from exajax.program import described_devices, hlo, operations
from exajax.recipe import text_workload
from exajax.simulate.kernels import operation_time_s
from tests.conftest import command

DIMENSIONS = (((2,), (0,)), ((), ()))
rng = np.random.default_rng(0)


def factors(scale=1.0):
    x_BTD = scale * rng.normal(size=(4, 32, 64))
    w_DNH = 0.02 * rng.normal(size=(64, 4, 16))
    return jnp.asarray(x_BTD, jnp.bfloat16), jnp.asarray(w_DNH, jnp.bfloat16)


def exactly(x, w):
    return jnp.einsum("BTD,DNH->BTNH", x.astype(jnp.float32), w.astype(jnp.float32))


def error(got, expected):
    got, expected = (np.asarray(a, np.float32) for a in (got, expected))
    return np.linalg.norm(got - expected) / np.linalg.norm(expected)


@pytest.mark.jax_surface
@pytest.mark.parametrize("scale", [1e-8, 1.0, 1e8])
def test_a_product_keeps_the_three_bits_of_e4m3_at_any_scale(scale):
    x, w = factors(scale)
    y = fp8.dot_general(x, w, DIMENSIONS)
    assert y.dtype == jnp.bfloat16
    # Both factors are rounded by up to 1/16, by 2.6% in the mean square: less would not be fp8.
    assert 0.02 < error(y, exactly(x, w)) < 0.05


@pytest.mark.jax_surface
@pytest.mark.parametrize("scale", [1e-9, 1.0])
def test_gradients_are_as_close_however_small_they_are(scale):
    x, w = factors()
    towards = scale * rng.normal(size=(4, 32, 4, 16))

    def gradients(product):
        return jax.grad(lambda x, w: jnp.sum(product(x, w) * towards), (0, 1))(x, w)

    rounded = gradients(lambda x, w: fp8.dot_general(x, w, DIMENSIONS).astype(jnp.float32))
    for got, expected in zip(rounded, gradients(exactly), strict=True):
        # e5m2 has two bits.
        assert 0.03 < error(got, expected) < 0.08


def test_nothing_times_something_is_nothing():
    x, w = factors()
    y, back = jax.vjp(lambda x, w: fp8.dot_general(x, w, DIMENSIONS), 0 * x, w)
    assert not np.any(y)
    for gradient in back(jnp.zeros_like(y)):
        assert not np.any(gradient)


@pytest.mark.parametrize(("name", "products"), [("llama-tiny", 7), ("gpt-tiny", 6)])
def test_the_products_with_the_weights_of_a_block_are_fp8_and_no_others(name, products):
    recipe = recipe_of(name, MeshSpec(), "fp8")
    with nnx.use_eager_sharding(False):
        model = text_workload.workload(recipe, "cpu").build(nnx.Rngs(0))
    tokens = jax.ShapeDtypeStruct((8, 32), jnp.int32)
    text = jax.jit(lambda tokens: model(tokens)).lower(tokens).as_text()
    dots = [line for line in text.splitlines() if "stablehlo.dot_general" in line]
    assert sum("f8E4M3FN" in line for line in dots) == products
    assert len(dots) == products + 3  # scores, mixing, logits


def recipe_of(name, mesh, precision, **options):
    small = dataclasses.replace(
        PRESETS[name], name="small", layers=2, width=64, heads=4, kv_heads=2, ffn=128
    )
    return Recipe.of(
        small,
        mesh,
        global_batch=8,
        seq=32,
        precision=precision,
        learning_rate=3e-3,
        warmup_steps=2,
        **options,
    )


def losses(precision, steps=30):
    recipe = recipe_of("llama-tiny", MeshSpec(), precision, remat="none", steps=steps)
    mesh = recipe.mesh.build(jax.devices()[:1])
    step = TrainStep.of(text_workload.workload(recipe, "cpu"), mesh, **recipe.step_options)
    state = step.init(np.uint32(0))
    tokens = np.random.default_rng(1).integers(0, 64, (8, 33)).astype(np.int32)
    batch = {"inputs": tokens[:, :-1], "targets": tokens[:, 1:]}
    batch = {k: jax.device_put(v, step.batch[k].sharding) for k, v in batch.items()}
    found = []
    for _ in range(steps):
        state, metrics = step.update(state, batch)
        found.append(float(metrics["loss"]))
    return found


@pytest.mark.slow
def test_a_model_learns_as_it_does_in_bf16():
    wide, narrow = losses("bf16"), losses("fp8")
    assert wide[-1] < 0.75 * wide[0]
    np.testing.assert_allclose(narrow, wide, rtol=0.04)
    assert narrow != wide


@pytest.fixture(scope="module")
def compiled():
    """A small llama on eight described H100, tensor and data parallel."""
    recipe = recipe_of("llama-tiny", MeshSpec(4, 1, 2), "fp8", remat="none")
    workload = text_workload.workload(recipe, "cuda")
    return recipe, exajax.predict(workload, recipe.mesh, "dgx-h100", **recipe.step_options)


def test_h100_multiplies_with_the_weights_of_all_blocks_in_fp8(compiled):
    recipe, prediction = compiled
    flops = {}
    for op, times in operations.flatten(prediction.compiled.program):
        if op.kind == "matmul":
            flops[op.dtype] = flops.get(op.dtype, 0.0) + op.flops * times
    model = recipe.model
    logits = model.width * model.padded_vocab
    per_weight = 6.0 * recipe.tokens / recipe.mesh.devices
    assert flops["bf16"] == pytest.approx(per_weight * logits)
    assert flops["f8e4m3fn"] + flops["f8e5m2"] == pytest.approx(
        per_weight * (model.matmul_parameters - logits)
    )


@pytest.mark.parametrize("triton", [True, False])
def test_both_of_the_compilers_kernels_are_priced_at_the_fp8_peak(triton):
    machine = load_cluster("dgx-h100")
    here = SingleDeviceSharding(described_devices.described_devices(machine, 1)[0])
    size = 4096
    square = jax.ShapeDtypeStruct((1, size, size), jnp.bfloat16, sharding=here)
    weight = jax.ShapeDtypeStruct((size, size), jnp.bfloat16, sharding=here)
    product = jax.jit(lambda x, w: fp8.dot_general(x, w, DIMENSIONS))
    text = (
        product.lower(square, weight)
        .compile(compiler_options={"xla_gpu_enable_triton_gemm": triton})
        .as_text()
    )
    assert bool(re.search(r"__cublas\$lt\$matmul\$f8", text)) != triton
    program = operations.read_program(hlo.parse(text), {"data": 1})
    (matmul,) = (op for op in program if op.kind == "matmul")
    assert matmul.flops == 2 * size**3
    in_bf16 = dataclasses.replace(matmul, dtype="bf16")
    ratio = machine.chip.peak_flops["fp8"] / machine.chip.peak_flops["bf16"]
    faster = operation_time_s(in_bf16, machine.chip) / operation_time_s(matmul, machine.chip)
    # The launch and what memory is waited for do not shrink.
    assert faster == pytest.approx(ratio, rel=0.1)


def test_a_chip_without_fp8_is_refused_by_name():
    flags = ("--mesh", "8x1", "--model", "llama2-7b", "--precision", "fp8")
    result = command("simulate", *flags, "--cluster", "dgx-a100")
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1
    assert "a100-80 has no peak for fp8" in result.stderr


def test_an_attached_gpu_without_fp8_is_refused_and_a_cpu_is_not():
    fp8.check(jax.devices("cpu")[0])
    fp8.check(described_devices.described_devices(load_cluster("dgx-h100"), 1)[0])
    with pytest.raises(InputError, match=r"A100.*8\.0.*no fp8"):
        fp8.check(described_devices.described_devices(load_cluster("dgx-a100"), 1)[0])


def test_experts_are_refused():
    with pytest.raises(InputError, match="experts of mixtral-tiny"):
        Recipe.of(PRESETS["mixtral-tiny"], MeshSpec(), precision="fp8")
