"""What lies in memory at the peak: by hand, and of small programs compiled for GPUs."""

import dataclasses
import functools

import jax
import pytest

from exajax import load_cluster
from exajax.models.presets import lookup
from exajax.program import hlo
from exajax.program.compile import compile_recipe, compile_step
from exajax.program.compiled import Compiled
from exajax.program.dumps import Dumps
from exajax.program.memory import Sizes, at_peak, peak_memory
from exajax.recipe import workloads
from exajax.recipe.recipe import Recipe
from exajax.simulate import advice
from exajax.simulate.prediction import predict_step
from exajax.spmd.mesh import MeshSpec
from exajax.spmd.step import TrainStep

H100 = load_cluster("dgx-h100")

ASSIGNMENT = """BufferAssignment:
allocation 0: size 64, parameter 0, shape |f32[16]| at ShapeIndex {}, maybe-live-out:
 value: <1 w @0> (size=64,offset=0): f32[16]{0}
allocation 1: size 400, preallocated-temp:
 value: <2 early @0> (size=100,offset=0): f32[25]{0}
 value: <3 stack @0> (size=200,offset=100): f32[2,25]{1,0}
 value: <4 loop{1} (phi) @0> (size=200,offset=100): f32[2,25]{1,0}
 value: <5 late @0> (size=60,offset=20): f32[15]{0}
allocation 2: size 4, thread-local:
 value: <6 inner @0> (size=4,offset=0): f32[]
"""

LIVE = """HloLiveRange (max 9):
  InstructionSequence:
    0:w
  BufferLiveRange:
    w{}:0-9
    early{}:1-2
    stack{}:2-5
    loop{1}:5-9
    late{}:6-8
  Live ranges at 2 (peak):
    early{}: 100 bytes (cumulative: 100 bytes)
"""


def recipe_of(model, mesh, **options):
    return Recipe.of(lookup(model), MeshSpec.parse(mesh), **options)


@functools.cache
def compiled(recipe):
    return Compiled.of(compile_recipe(recipe, H100))


def memory_of(model, mesh, **options):
    return compiled(recipe_of(model, mesh, **options)).memory


def test_values_of_the_block_of_temporaries_are_read_with_their_lives():
    values = Dumps(ASSIGNMENT, LIVE, "", {}).values()
    assert [v.name for v in values] == ["early{}", "stack{}", "loop{1}", "late{}"]
    assert (values[2].bytes, values[2].offset, values[2].first, values[2].last) == (200, 100, 5, 9)


def test_at_the_peak_bytes_that_values_share_count_once():
    values = Dumps(ASSIGNMENT, LIVE, "", {}).values()
    assert [(size, v.name) for size, v in at_peak(values)] == [(200, "stack{}"), (100, "early{}")]
    later = [v for v in values if v.name != "early{}"]
    assert [(size, v.name) for size, v in at_peak(later)] == [(200, "loop{1}"), (60, "late{}")]


def test_without_xlas_assignment_what_the_step_makes_is_temporary():
    module = hlo.parse("ENTRY %main (a: f32[4]) -> f32[4] {\n  ROOT %a = f32[4]{0} parameter(0)\n}")
    found = peak_memory(Sizes(16, 32, 50, 100, 4), module, [])
    assert (found.parameters, found.optimizer, found.batch) == (16, 32, 2)
    assert (found.activations, found.gradients, found.temporaries) == (0, 0, 104)
    assert not found.divided
    assert peak_memory(Sizes(16, 32, 50, 0, 4), module, []).divided  # nothing is made
    assert found.total == 50 + 100 + 4


@pytest.mark.slow
def test_layers_keep_what_the_remat_says_and_no_more():
    full, selective, everything = (
        memory_of("llama-tiny", "2x4", remat=remat) for remat in ("full", "selective", "none")
    )
    # 8 layers, 16 bits, 4 x 128 tokens; of width 128, 16 heads and 2 x 8 KV heads of 8, ffn 384,
    # all divided by model=4: the residual before a layer, and what its weight products make.
    of_a_value = 8 * 2 * 4 * 128 // 4
    assert full.activations == pytest.approx(of_a_value * 128, rel=0.1)
    products = 128 + 128 + 2 * 64 + 2 * 384
    assert selective.activations == pytest.approx(of_a_value * (128 + products), rel=0.1)
    assert everything.activations > 2 * selective.activations
    assert everything.parameters == full.parameters
    assert everything.optimizer == full.optimizer


@pytest.mark.slow
def test_scores_that_are_made_again_are_not_kept():
    everything, no_scores = (
        memory_of("llama-tiny", "2x4", attention="unfused", remat=remat)
        for remat in ("none", "attention")
    )
    # At least the weights of the mix: 8 layers, 16 bits, 4 x 16 / 4 heads of 128 x 128.
    scores = 8 * 2 * 4 * 4 * 128 * 128
    assert no_scores.activations < everything.activations - scores


@pytest.mark.jax_surface
@pytest.mark.parametrize("remat", ["full", "none"])
def test_the_parts_add_up_to_the_peak_and_the_largest_are_named(remat):
    found = memory_of("llama-tiny", "2x4", remat=remat)
    parts = (found.parameters, found.optimizer, found.batch)
    parts += (found.gradients, found.activations, found.temporaries)
    assert min(parts) > 0
    assert sum(parts) == found.total
    sizes = [buffer.bytes for buffer in found.largest]
    assert sizes == sorted(sizes, reverse=True)
    for role in ("activations", "gradients", "parameters", "optimizer"):
        listed = sum(b.bytes for b in found.largest if b.role == role)
        assert listed <= getattr(found, role)
    if remat == "none":
        kept = next(buffer for buffer in found.largest if buffer.role == "activations")
        assert kept.name.startswith("activations saved for the backward pass: layers/")
        assert kept.shape == "bf16[8,4,128,96]"  # layers, samples, tokens, a quarter of 384


@pytest.mark.slow
def test_zero_divides_what_its_level_says():
    plain, optimizer, everything = (
        memory_of("gpt-tiny", "8x1", zero=zero, remat="full") for zero in (0, 1, 3)
    )
    assert optimizer.parameters == plain.parameters
    assert optimizer.optimizer == pytest.approx(plain.optimizer / 8, rel=0.01)
    assert everything.parameters == pytest.approx(plain.parameters / 8, rel=0.01)
    assert everything.optimizer == optimizer.optimizer
    assert everything.gradients < plain.gradients
    in_bf16 = plain.parameters / 2
    assert plain.gradients > 0.9 * in_bf16 * 8 * 4 / (8 * 4 + 3)  # the layers' at the least


@pytest.mark.slow
def test_accumulation_holds_sums_as_large_as_the_parameters_and_fewer_activations():
    whole = memory_of("gpt-tiny", "8x1", zero=0, remat="full")
    parts = memory_of("gpt-tiny", "8x1", zero=0, remat="full", micro_batch=1)
    assert parts.gradients >= parts.parameters
    assert parts.activations < whole.activations / 2


def test_memory_of_attached_devices_is_told_apart_too():
    recipe = recipe_of("gpt-tiny", "2x4", precision="fp32", remat="full")
    mesh = recipe.mesh.build(jax.devices())
    step = TrainStep.of(workloads.workload(recipe, "cpu"), mesh, **recipe.step_options)
    found = compile_step(step).memory
    assert found.activations > 8 * 4 * 4 * 128 * 128 // 4
    assert found.gradients > 0


def small(bytes_):
    """The same machine with devices of so little memory; a program does not depend on that."""
    return dataclasses.replace(H100, chip=dataclasses.replace(H100.chip, memory_bytes=bytes_))


def predicted(recipe, cluster):
    return predict_step(
        compiled(recipe),
        cluster,
        recipe.precision,
        samples=recipe.global_batch,
        tokens_per_sample=recipe.seq,
        model_flops=recipe.flops,
    )


def advised(recipe, cluster):
    found = predicted(recipe, cluster)
    assert not found.fits
    limits = (found.compiled.memory, found.capacity_bytes)
    first = found.compiled.memory.shortfall(found.capacity_bytes)
    return first + advice.ways_out(recipe, cluster, *limits, lambda r: predicted(r, cluster))


def test_too_many_activations_are_met_by_recomputation_and_that_fits():
    recipe = recipe_of("llama-tiny", "2x4", remat="none")
    cluster = small(16e6)
    problem, way_out = advised(recipe, cluster)
    assert "most of it is activations" in problem
    assert way_out.startswith("`remat` selective makes it fit: ")
    assert predicted(dataclasses.replace(recipe, remat="selective"), cluster).fits


def test_too_much_state_is_met_by_zero_and_that_fits():
    recipe = recipe_of("gpt-tiny", "8x1", zero=0, remat="full")
    cluster = small(28e6)
    problem, way_out = advised(recipe, cluster)
    assert "most of it is parameters and optimizer" in problem
    level = int(way_out.removeprefix("`zero` ")[0])
    assert way_out.startswith(f"`zero` {level} makes it fit: ")
    assert predicted(dataclasses.replace(recipe, zero=level), cluster).fits


def test_what_no_mesh_holds_is_said():
    recipe = recipe_of("gpt-tiny", "8x1", zero=0, remat="full")
    assert "no mesh of the 16,384 devices" in advised(recipe, small(1e6))[1]


def test_estimates_are_exact_where_only_state_is_divided():
    recipe = recipe_of("gpt-tiny", "8x1", zero=0, remat="full")
    before = memory_of("gpt-tiny", "8x1", zero=0, remat="full")
    changed = dataclasses.replace(recipe, zero=1)
    saved = before.total - advice.estimated_total(recipe, before, changed)
    assert saved == pytest.approx(before.optimizer * 7 / 8, rel=0.01)
