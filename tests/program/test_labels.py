"""Names of operations, on real steps."""

from collections import Counter

import jax
import pytest

from exajax.models.presets import PRESETS
from exajax.program import hlo, operations
from exajax.program.labels import Label, label
from exajax.recipe import text_workload
from exajax.recipe.recipe import Recipe
from exajax.spmd.mesh import MeshSpec
from exajax.spmd.step import TrainStep
from tests.program.steps import compiled


@pytest.mark.parametrize(
    ("op_name", "expected"),
    [
        ("jit(update)/jvp(embed)/shard_map/jit(_take)/select_n", ("embed", "", "forward")),
        (
            "jit(update)/jvp(layers)/while/body/closed_call/attention_block/dot_general",
            ("attention", "block", "forward"),
        ),
        (
            "jit(update)/transpose(jvp(layers))/while/body/closed_call/checkpoint/mlp/dot_general",
            ("mlp", "block", "backward"),
        ),
        (
            "jit(update)/transpose(jvp(layers))/while/body/closed_call/checkpoint/"
            "rematted_computation/moe/shard_map/BECD,EDF->BECF/dot_general",
            ("experts", "block", "recompute"),
        ),
        ("jit(update)/transpose(jvp(logits))/transpose", ("logits", "", "backward")),
        ("jit(update)/jvp()/reduce_max", ("loss", "", "forward")),
        ("jit(update)/optimizer/mul;jit(update)", ("optimizer", "", "")),
        ("jit(update)/shard_map/while/body/cond/branch_1_fun/embed/add", ("embed", "", "forward")),
        (
            "jit(update)/jvp(layers)/while/body/(mlp/mul:attention_block/dot_general)",
            ("mlp", "block", "forward"),
        ),
        (
            "jit(update)/transpose(jvp(layers))/while/body/jit(dynamic_index_in_dim)/dynamic_slice",
            ("other", "block", "backward"),
        ),
        ("jit(update)/convert_element_type", ("other", "", "")),
        ("", ("other", "", "")),
    ],
)
def test_a_path_names_part_layer_and_pass(op_name, expected):
    assert label(op_name) == Label(*expected)


def test_what_is_communicated_says_so_and_keeps_its_pass():
    op_name = "jit(update)/transpose(jvp(layers))/while/body/closed_call/checkpoint/mlp/dot_general"
    for kind in ("collective", "collective-start", "collective-done"):
        assert label(op_name, kind) == Label("communication", "block", "backward")


def flops_by_label(program):
    found = Counter()
    for op, times in operations.flatten(program):
        found[label(op.op_name, op.kind)] += op.flops * times
    return found


def check(program, recompute):
    found = flops_by_label(program)
    whole = sum(found.values())
    named = sum(
        flops for name, flops in found.items() if name.part != "other" and name.direction != ""
    )
    assert named >= 0.95 * whole
    passes = Counter()
    for name, flops in found.items():
        passes[name.direction] += flops
    # Two products backward for one forward; the gradients of fused attention are 2.5 times it.
    assert 1.9 <= passes["backward"] / passes["forward"] <= 2.2
    assert (passes["recompute"] > 0) == recompute
    return {name.part for name, flops in found.items() if flops}


CASES = [
    ("gpt-tiny", "fsdp=8", {}),
    pytest.param("vit-tiny", "fsdp=8", {}, marks=pytest.mark.slow),
    pytest.param("mixtral-tiny", "fsdp=8", {}, marks=pytest.mark.slow),
    ("llama-tiny", "model=8", {}),
    pytest.param("llama-tiny", "context=4", {}, marks=pytest.mark.slow),
    pytest.param("llama-tiny", "pipe=4", {}, marks=pytest.mark.slow),
    pytest.param("mixtral-tiny", "expert=8", {"moe": "dropless"}, marks=pytest.mark.slow),
    pytest.param("llama-tiny", "fsdp=2,model=4", {"remat": "offload"}, marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("model", "mesh", "options"), CASES)
def test_nearly_all_flops_of_a_step_are_named_on_a_gpu(model, mesh, options):
    parts = check(compiled(model, mesh, **options).program, recompute=True)
    blocks = {"attention", "experts" if "mixtral" in model else "mlp"}
    assert blocks | {"logits"} <= parts


@pytest.mark.parametrize(
    ("name", "remat"),
    [
        ("llama-tiny", "selective"),
        ("mixtral-tiny", "none"),
        pytest.param("llama-tiny", "none", marks=pytest.mark.slow),
        pytest.param("mixtral-tiny", "selective", marks=pytest.mark.slow),
    ],
)
def test_nearly_all_flops_of_a_step_are_named_on_a_cpu(name, remat):
    recipe = Recipe.of(PRESETS[name], MeshSpec(), global_batch=2, remat=remat, precision="fp32")
    mesh = MeshSpec().build(jax.devices()[:1])
    step = TrainStep.of(text_workload.workload(recipe, "cpu"), mesh, **recipe.step_options)
    text = step.update.lower(step.state, step.batch).compile().as_text()
    check(operations.read_program(hlo.parse(text), {"data": 1}), recompute=remat != "none")


@pytest.mark.jax_surface
def test_the_optimizer_of_a_step_is_named():
    step = compiled("llama-tiny", "fsdp=8")
    moved = Counter()
    for op, times in step.operations:
        moved[label(op.op_name, op.kind).part] += op.bytes * times
    # AdamW reads parameter, gradient and two moments, and writes three of them, in fp32.
    state = 4 * step.recipe.model.parameters / 8
    assert moved["optimizer"] >= 6 * state
