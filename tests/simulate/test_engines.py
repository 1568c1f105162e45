"""The two engines, one that reads programs and one of formulas, say the same of a step."""

import dataclasses
import json

import pytest

from exajax.machine.cluster import load_cluster
from exajax.models.presets import lookup
from exajax.recipe.recipe import Recipe
from exajax.simulate.formulas import prediction as analytic
from exajax.simulate.prediction import predict_recipe
from exajax.spmd.mesh import MeshSpec
from tests.conftest import REPOSITORY

LAYOUTS = [  # none that the formulas' constants were chosen by
    ("dgx-a100", "gpt2-774m", "fsdp=8", {"global_batch": 64}),
    ("dgx-h100", "llama2-7b", "fsdp=4,model=2", {"global_batch": 16, "remat": "full"}),
    ("dgx-h100", "gpt3-2.7b", "data=8", {"global_batch": 64, "zero": 1, "micro_batch": 4}),
    ("dgx-h100", "llama2-7b", "context=8", {"global_batch": 1}),
    # XLA laid matrices over context, and recomputed attention twice: 27% longer than formulas.
    (
        "perlmutter",
        "llama2-7b",
        "fsdp=2,context=2,model=2",
        {"global_batch": 32, "micro_batch": 4, "zero": 0, "remat": "save-qkv", "seq": 4096},
    ),
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "model", "mesh", "options"), LAYOUTS)
def test_the_engines_agree_on_a_step(name, model, mesh, options):
    recipe, cluster = Recipe.of(lookup(model), MeshSpec.parse(mesh), **options), load_cluster(name)
    read = predict_recipe(recipe, cluster)
    said = analytic.predict(recipe, cluster)
    assert said.step_time_s == pytest.approx(read.step_time_s, rel=0.1)


def test_the_engines_agree_on_a_small_step():
    """As `LAYOUTS`, of a program that compiles in seconds; gaps were -4% and -1%."""
    options = {"global_batch": 64, "zero": 0}
    recipe = Recipe.of(lookup("gpt2-124m"), MeshSpec.parse("data=8"), **options)
    cluster = load_cluster("dgx-a100")
    read, formulas = predict_recipe(recipe, cluster), analytic.predict(recipe, cluster)
    assert formulas.step_time_s == pytest.approx(read.step_time_s, rel=0.1)
    assert formulas.total_bytes == pytest.approx(read.compiled.memory.total, rel=0.1)


def gaps():
    """Formulas over the program, time and memory, of every layout that was compiled before."""
    found = {}
    rows = json.loads((REPOSITORY / "benchmarks" / "data" / "engines.json").read_text())["rows"]
    for row in rows:
        recipe = Recipe.of(lookup(row["model"]), MeshSpec.parse(row["mesh"]), **row["options"])
        said = analytic.predict(recipe, load_cluster(row["cluster"]))
        name = f"{row['model']} {row['mesh']} {row['options'].get('remat', '')}".strip()
        read = row["compiled"]
        found[name] = (
            said.step_time_s / read["step_time_s"] - 1,
            said.total_bytes / read["memory_bytes"] - 1,
        )
    return found


def test_the_formulas_agree_with_programs_that_were_compiled_before():
    found = gaps()
    for name in (
        "llama3-8b context=8",
        "gpt2-124m fsdp=8 full",
        "llama2-70b 4x8",
        "llama2-70b 8x8",
        "llama3-8b data=8,context=4",
    ):
        assert all(abs(gap) < 0.1 for gap in found[name]), (name, found[name])
    assert sum(abs(time) < 0.1 for time, _ in found.values()) >= 0.95 * len(found)


def test_a_group_that_grows_over_nodes_waits_longer_in_both_engines():
    """Twice the devices, each with as much to do: more hops for what fsdp gathers and scatters."""
    cluster = load_cluster("dgx-h100")
    steps = [
        analytic.predict(Recipe.of(lookup("llama2-70b"), MeshSpec.parse(mesh)), cluster)
        for mesh in ("4x8", "8x8")
    ]
    assert steps[0].step_time_s < steps[1].step_time_s  # compiled: 2.73 s and 2.85 s


# Behind each: gaps of time and memory when this was written, formulas over program.
ACCUMULATING = [
    # XLA ran every forward pass twice here: 2.51 s and 54 GB against 1.86 s and 37 GB.
    ("dgx-h100", "llama2-7b", "data=4,model=4", 64, 4, {"zero": 2}),  # +3%, -1%
    # Each stack of the feed-forward is kept twice with sharded parameters and no model axis.
    ("dgx-h100", "llama3-8b", "data=4,fsdp=8", 128, 1, {"zero": 2}),  # -2%, +3%
    ("dgx-h100", "llama2-7b", "data=8,fsdp=2", 64, 2, {"zero": 2}),  # +5%, 0%: not in 2 parts
    # The stream lies in two orders with sharded parameters and a model axis.
    ("dgx-h100", "llama2-7b", "data=2,fsdp=4,model=2", 64, 2, {"zero": 2}),  # +5%, -2%
    ("dgx-h100", "gpt3-2.7b", "data=4,fsdp=4,model=2", 128, 4, {"zero": 1}),  # -0%, -5%
    ("dgx-h100", "llama2-7b", "data=2,fsdp=2,model=4", 32, 4, {"zero": 0, "remat": "none"}),
    # +2%, -1%
    ("dgx-h100", "llama2-13b", "data=2,fsdp=16", 128, 2, {"zero": 0, "remat": "full"}),  # +1%, -7%
    ("dgx-a100", "gpt3-6.7b", "data=2,model=8", 32, 4, {"zero": 0}),  # -3%, +2%
    ("dgx-h100", "gpt3-1.3b", "data=4", 64, 4, {"zero": 2}),  # +1%, -2%
    ("dgx-h100", "mixtral-8x7b", "data=4,expert=2", 32, 1, {"zero": 2, "layers": 4}),  # +5%, +2%
    ("dgx-h100", "mixtral-8x7b", "data=2,expert=4,model=2", 32, 1, {"zero": 1, "layers": 8}),
    # -6%, -2%
    ("dgx-h100", "llama2-7b", "data=4,context=2", 32, 2, {"zero": 2}),  # -6%, 0%
    ("dgx-h100", "gpt3-2.7b", "data=8", 64, 4, {"zero": 1}),  # -1%, -2%
    # A pipeline has one part of a stage more than is in flight, and the largest sum twice.
    ("dgx-h100", "llama2-7b", "data=2,pipe=4", 32, 2, {"zero": 2}),  # +2%, -1%
    ("dgx-h100", "llama2-13b", "data=4,pipe=4", 64, 1, {"zero": 1}),  # +1%, -3%
]


@pytest.mark.parametrize(
    ("name", "model", "mesh", "batch", "micro_batch", "options"),
    [
        pytest.param(*row, marks=[pytest.mark.slow] if number else [])
        for number, row in enumerate(ACCUMULATING)
    ],
)
def test_the_engines_agree_on_accumulation_below_zero_3(
    name, model, mesh, batch, micro_batch, options
):
    cluster, dimensions = load_cluster(name), lookup(model)
    sizes = {"global_batch": batch, "micro_batch": micro_batch}
    if dimensions.experts:
        options, sizes = dict(options), sizes | {"seq": 4096}
        dimensions = dataclasses.replace(dimensions, layers=options.pop("layers"))
    recipe = Recipe.of(dimensions, MeshSpec.parse(mesh), **sizes, **options)
    assert recipe.micro_batches > 1
    read, said = predict_recipe(recipe, cluster), analytic.predict(recipe, cluster)
    assert said.step_time_s == pytest.approx(read.step_time_s, rel=0.1)
    assert said.total_bytes == pytest.approx(read.compiled.memory.total, rel=0.1)
