"""FLOPs, bytes and collectives of real compiled programs, against closed forms."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

import exajax
from exajax import MeshSpec, Recipe
from exajax.models.presets import PRESETS, lookup
from exajax.program import hlo, operations
from exajax.recipe import text_workload


def program_of(function, *shapes):
    compiled = jax.jit(function).lower(*shapes).compile()
    return operations.read_program(hlo.parse(compiled.as_text()), {"data": 1})


def test_a_matrix_product_costs_two_flops_a_term():
    a, b = jax.ShapeDtypeStruct((48, 80), jnp.float32), jax.ShapeDtypeStruct((80, 112), jnp.float32)
    assert operations.total_flops(program_of(jnp.matmul, a, b)) == 2 * 48 * 80 * 112


@pytest.mark.parametrize("trips", [2, 7])
def test_a_loop_counts_every_trip(trips):
    def repeated(x, w):
        return jax.lax.scan(lambda x, _: (jnp.tanh(x @ w), None), x, length=trips)[0]

    square = jax.ShapeDtypeStruct((128, 128), jnp.float32)
    program = program_of(repeated, square, square)
    assert operations.total_flops(program) == trips * 2 * 128**3


def test_a_conditional_costs_its_dearer_branch():
    def chosen(go, x):
        return jax.lax.cond(go, lambda x: (x @ x) @ x, lambda x: x @ x, x)

    square = jax.ShapeDtypeStruct((64, 64), jnp.float32)
    program = program_of(chosen, jax.ShapeDtypeStruct((), jnp.bool_), square)
    assert operations.total_flops(program) == 2 * 2 * 64**3


def test_a_slice_of_a_stack_costs_the_slice():
    layers, n = 64, 256

    def scanned(x, stack):
        return jax.lax.scan(lambda x, w: (x * w, None), x, stack)[0]

    stack = jax.ShapeDtypeStruct((layers, n, n), jnp.float32)
    one = jax.ShapeDtypeStruct((n, n), jnp.float32)
    moved = operations.total_bytes(program_of(scanned, one, stack))
    layer = 4 * n * n
    assert 3 * layers * layer <= moved <= 8 * layers * layer


NAMELESS_FUSION = """
HloModule jit_f, is_scheduled=true

%inner (a: f32[8,16], b: f32[16,4]) -> f32[8,4] {
  %a = f32[8,16]{1,0} parameter(0)
  %b = f32[16,4]{1,0} parameter(1)
  %scaled = f32[8,16]{1,0} negate(%a), metadata={op_name="jit(f)/norm/neg"}
  ROOT %dot = f32[8,4]{1,0} dot(%scaled, %b), lhs_contracting_dims={1}, rhs_contracting_dims={0}, \
metadata={op_name="jit(f)/mlp/dot_general"}
}

ENTRY %main (x: f32[8,16], w: f32[16,4]) -> f32[8,4] {
  %x = f32[8,16]{1,0} parameter(0)
  %w = f32[16,4]{1,0} parameter(1)
  ROOT %fused = f32[8,4]{1,0} fusion(%x, %w), kind=kCustom, calls=%inner
}
"""


def test_a_fusion_without_a_name_has_that_of_its_product():
    (operation,) = operations.read_program(hlo.parse(NAMELESS_FUSION), {"data": 1})
    assert operation.op_name == "jit(f)/mlp/dot_general"
    assert operation.flops == 2 * 8 * 16 * 4


@pytest.mark.parametrize("remat", ["none", "selective", "full"])
@pytest.mark.parametrize("name", ["llama-tiny", "gpt-tiny", "mixtral-tiny"])
def test_the_program_of_a_step_has_the_flops_of_the_closed_form(name, remat):
    config = dataclasses.replace(PRESETS[name], layers=3)
    options = {"precision": "fp32", "remat": remat, "capacity_factor": 1.0}
    recipe = Recipe.of(config, MeshSpec(), global_batch=2, **options)
    workload = text_workload.workload(recipe, "cpu")
    step = exajax.TrainStep.of(workload, MeshSpec().build(jax.devices()[:1]), **recipe.step_options)
    text = step.update.lower(step.state, step.batch).compile().as_text()
    flops = operations.total_flops(operations.read_program(hlo.parse(text), {"data": 1}))
    # On a CPU scores are masked, not left out.
    expected = config.step_flops(recipe.global_batch, recipe.seq, remat, scores=1.0)
    assert flops == pytest.approx(expected, rel=0.01)
    assert recipe.flops == config.step_flops(recipe.global_batch, recipe.seq)


@pytest.mark.parametrize("remat", ["none", "selective"])
def test_bytes_of_a_step_are_those_of_the_compiler_s_own_count(remat):
    config = dataclasses.replace(PRESETS["llama-tiny"], layers=3)
    recipe = Recipe.of(config, MeshSpec(), global_batch=2, precision="fp32", remat=remat)
    workload = text_workload.workload(recipe, "cpu")
    step = exajax.TrainStep.of(workload, MeshSpec().build(jax.devices()[:1]), **recipe.step_options)
    compiled = step.update.lower(step.state, step.batch).compile()
    program = operations.read_program(hlo.parse(compiled.as_text()), {"data": 1})
    once = sum(op.bytes for op, _ in operations.flatten(program))  # it counts a loop's body once
    assert once == pytest.approx(compiled.cost_analysis()["bytes accessed"], rel=0.01)
    assert (operations.total_bytes(program) > once) == (remat != "none")


@pytest.fixture(scope="module")
def compiled_70b():
    """llama2-70b on 1,024 described H100: FSDP over 128 x tensor and sequence over 8."""
    recipe = Recipe.of(lookup("llama2-70b"), MeshSpec(128, 1, 8))
    prediction = exajax.predict(text_workload.workload(recipe, "cuda"), recipe.mesh, "dgx-h100")
    return recipe, prediction


def test_parameters_are_gathered_once_a_pass_and_gradients_scattered_once(compiled_70b):
    recipe, prediction = compiled_70b
    moved = operations.communicated_bytes(prediction.compiled.program)["data"]
    shard = 2 * recipe.model.parameters / recipe.mesh.model  # bf16, a model shard's
    assert moved["all-gather"] == pytest.approx(2 * shard, rel=0.02)
    assert moved["reduce-scatter"] == pytest.approx(shard, rel=0.02)


def test_each_sublayer_gathers_and_scatters_the_residual_stream(compiled_70b):
    recipe, prediction = compiled_70b
    moved = operations.communicated_bytes(prediction.compiled.program)["model"]
    stream = 2 * 4 * recipe.seq * recipe.model.width  # bf16, 4 sequences
    layers = recipe.model.layers
    # Forward two gathers and two scatters a layer, backward as many scatters, and the gathers of
    # the recomputed inputs and the gradients (arXiv:2205.05198, section 4.2.2).
    assert moved["all-gather"] == pytest.approx(6 * layers * stream, rel=0.03)
    assert moved["reduce-scatter"] == pytest.approx(4 * layers * stream, rel=0.03)


def test_nothing_of_the_program_goes_unpriced(compiled_70b):
    _, prediction = compiled_70b
    kinds = {op.kind for op, _ in operations.flatten(prediction.compiled.program)}
    assert kinds == {"matmul", "attention", "memory", "collective-start", "collective-done"}
    loops = [n for n in prediction.compiled.program if isinstance(n, operations.ProgramLoop)]
    # Two layers a trip; the first and the last stand outside of a pipelined loop.
    assert [(loop.trips, loop.trips_known) for loop in loops] == [(39, True), (39, True)]


def test_flops_of_the_compiled_step_are_those_of_the_model(compiled_70b):
    recipe, prediction = compiled_70b
    tokens = recipe.tokens
    matrices = 6.0 * recipe.model.matmul_parameters * tokens
    # Forward, backward and recomputed: 2 + 5 + 2 products instead of 6, half under the mask.
    scores = tokens * recipe.seq * recipe.model.width * recipe.model.layers
    attention = (2 + 2 + 5) * scores
    assert prediction.hardware_flops == pytest.approx(matrices + attention, rel=0.01)


def test_every_start_has_its_done(compiled_70b):
    _, prediction = compiled_70b

    def check(program):
        started = {op.name for op in program if getattr(op, "kind", "") == "collective-start"}
        ended = {op.start for op in program if getattr(op, "kind", "") == "collective-done"}
        assert started == ended
        for node in program:
            if isinstance(node, operations.ProgramLoop):
                check(node.body)

    check(prediction.compiled.program)
