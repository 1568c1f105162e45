"""The layouts of a job that has lost hosts."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exajax import MeshSpec, Recipe
from exajax.models.presets import lookup
from exajax.resilience.elastic import ElasticLayouts, shrink


def recipe(mesh, **options):
    return Recipe.of(lookup("llama-tiny"), MeshSpec.parse(mesh), precision="fp32", **options)


@pytest.mark.parametrize(
    ("mesh", "hosts", "left", "smaller"),
    [
        ("4x2", 4, 3, None),  # 16 samples do not divide by three
        ("4x2", 4, 2, "2x2"),
        ("4x2", 4, 1, "1x2"),
        ("1x8", 4, 2, None),  # there is no replica to drop
        ("fsdp=4,model=2", 2, 1, "fsdp=2,model=2"),
        ("data=2,fsdp=4", 2, 1, "fsdp=4"),
        ("pipe=2,data=4", 4, 2, "pipe=2,data=2"),
        ("data=6,model=2", 3, 2, "4x2"),
    ],
)
def test_replicas_are_dropped_and_axes_that_split_a_layer_stay(mesh, hosts, left, smaller):
    batch = {"global_batch": 48} if mesh == "data=6,model=2" else {}
    got = shrink(recipe(mesh, **batch), hosts, left)
    assert (got and str(got.mesh)) == (str(MeshSpec.parse(smaller)) if smaller else None)


@given(
    data=st.sampled_from([1, 2, 3, 4, 6, 8]),
    model=st.sampled_from([1, 2]),
    hosts=st.sampled_from([1, 2, 3, 4, 6]),
    rows=st.integers(1, 6),
    left=st.integers(1, 6),
)
def test_the_global_batch_stays_and_no_micro_batch_grows(data, model, hosts, rows, left):
    if (data * model) % hosts or left > hosts:
        return
    full = recipe(f"{data}x{model}", global_batch=data * rows)
    got = shrink(full, hosts, left)
    if got is None:
        return
    assert got.global_batch == full.global_batch
    assert got.micro_batch <= full.micro_batch
    assert got.mesh.devices * hosts == full.mesh.devices * left
    assert got.micro_batches * got.micro_batch * got.mesh.batch_shards == got.global_batch
    assert got.job == full.job


def test_the_largest_number_of_ready_hosts_that_makes_up_a_mesh_runs():
    layouts = ElasticLayouts(recipe("4x2"), hosts=4, min_hosts=1)
    assert layouts.for_hosts([0, 1, 2, 3]).members == (0, 1, 2, 3)
    assert layouts.for_hosts([0, 2, 3]).members == (0, 2)
    assert layouts.for_hosts([3]).mesh == "1x2"
    assert ElasticLayouts(recipe("4x2"), hosts=4, min_hosts=3).for_hosts([1, 2]) is None
    assert layouts.for_hosts([]) is None
