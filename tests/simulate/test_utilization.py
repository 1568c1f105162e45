"""MFU and HFU count FLOPs in one convention: the model's own, and what the devices perform."""

import json

import pytest

from exajax.machine.cluster import load_cluster
from exajax.models.dimensions import FLOPS_CONVENTION
from exajax.models.presets import lookup
from exajax.recipe.recipe import Recipe
from exajax.simulate.formulas.prediction import predict
from exajax.simulate.prediction import predict_recipe
from exajax.spmd.mesh import MeshSpec
from tests.conftest import command

H100 = load_cluster("dgx-h100")


def test_model_flops_are_those_of_megatron_lm():
    """Its `num_floating_point_operations` for a llama with the scores that the mask shows."""
    D, F, V, S, L = 4096, 14336, 128256, 8192, 32
    qkv, out, gated = D * (4096 + 2 * 1024), 4096 * D, 3 * D * F
    core = 4096 * S / 2 * 2
    assert lookup("llama3-8b").step_flops(3, S) == 6 * 3 * S * (
        L * (qkv + core + out + gated) + D * V
    )


@pytest.mark.parametrize("engine", [predict, pytest.param(predict_recipe, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("model", "mesh", "options"),
    [
        ("llama2-7b", "fsdp=8", {"remat": "none", "global_batch": 8}),
        ("llama2-7b", "fsdp=8", {"remat": "none", "global_batch": 8, "attention": "unfused"}),
        ("llama3-8b", "context=8", {"remat": "none", "global_batch": 1}),
        ("vit-l", "data=8", {"remat": "none", "global_batch": 512}),
        ("mixtral-8x7b", "expert=8", {"remat": "none", "global_batch": 8, "seq": 4096}),
    ],
)
def test_devices_perform_no_less_than_the_model_needs(engine, model, mesh, options):
    recipe = Recipe.of(lookup(model), MeshSpec.parse(mesh), **options)
    found = engine(recipe, H100).to_json()
    assert 0 < found["mfu"] <= found["hfu"] <= 1
    assert found["hfu"] < 1.4 * found["mfu"]


def test_the_convention_is_in_the_help_and_in_every_result():
    flags = ("--mesh", "8x1", "--model", "gpt2-124m", "--engine", "analytic", "--json")
    found = json.loads(command("simulate", *flags).stdout)
    assert found["provenance"]["flops_convention"] == FLOPS_CONVENTION
    said = "".join(FLOPS_CONVENTION.split())  # lines break anywhere
    for name in ("simulate", "train", "plan"):
        assert said in "".join(command(name, "--help").stdout.split())
