"""The two engines, one that reads programs and one of formulas, say the same of a step."""

import pytest

from exajax.cluster import load_cluster
from exajax.mesh import MeshSpec
from exajax.models.presets import lookup
from exajax.recipe import Recipe
from exajax.simulate.analytic import prediction as analytic
from exajax.simulate.prediction import predict_recipe

LAYOUTS = [  # none that the formulas' constants were chosen by
    ("dgx-a100", "gpt2-774m", "fsdp=8", {"global_batch": 64}),
    ("dgx-h100", "llama2-7b", "fsdp=4,model=2", {"global_batch": 16, "remat": "full"}),
    ("dgx-h100", "gpt3-2.7b", "data=8", {"global_batch": 64, "zero": 1, "micro_batch": 4}),
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "model", "mesh", "options"), LAYOUTS)
def test_the_engines_agree_on_a_step(name, model, mesh, options):
    recipe, cluster = Recipe.of(lookup(model), MeshSpec.parse(mesh), **options), load_cluster(name)
    read = predict_recipe(recipe, cluster)
    said = analytic.predict(recipe, cluster)
    assert said.step_time_s == pytest.approx(read.step_time_s, rel=0.1)
