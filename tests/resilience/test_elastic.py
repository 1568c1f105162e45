"""Which mesh a job goes on with when hosts are lost."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exajax import MeshSpec, Recipe
from exajax.models.presets import lookup
from exajax.resilience.elastic import Layouts, shrunk


def recipe(mesh, **options):
    return Recipe.of(lookup("llama-tiny"), MeshSpec.parse(mesh), precision="fp32", **options)


@pytest.mark.parametrize(
    ("mesh", "hosts", "left", "smaller"),
    [
        ("4x2", 4, 3, None),  # 16 samples do not divide by three
        ("4x2", 4, 2, "2x2"),
        ("4x2", 4, 1, "1x2"),
        ("1x8", 4, 2, None),  # there is no replica to give up
        ("fsdp=4,model=2", 2, 1, "fsdp=2,model=2"),
        ("data=2,fsdp=4", 2, 1, "fsdp=4"),
        ("pipe=2,data=4", 4, 2, "pipe=2,data=2"),
        ("data=6,model=2", 3, 2, "4x2"),
    ],
)
def test_replicas_are_given_up_and_what_splits_a_layer_stays(mesh, hosts, left, smaller):
    batch = {"global_batch": 48} if mesh == "data=6,model=2" else {}
    found = shrunk(recipe(mesh, **batch), hosts, left)
    assert (found and str(found.mesh)) == (str(MeshSpec.parse(smaller)) if smaller else None)


@given(
    data=st.sampled_from([1, 2, 3, 4, 6, 8]),
    model=st.sampled_from([1, 2]),
    hosts=st.sampled_from([1, 2, 3, 4, 6]),
    rows=st.integers(1, 6),
    left=st.integers(1, 6),
)
def test_the_batch_stays_and_no_device_works_on_more_at_a_time(data, model, hosts, rows, left):
    if (data * model) % hosts or left > hosts:
        return
    whole = recipe(f"{data}x{model}", global_batch=data * rows)
    found = shrunk(whole, hosts, left)
    if found is None:
        return
    assert found.global_batch == whole.global_batch
    assert found.micro_batch <= whole.micro_batch
    assert found.mesh.devices * hosts == whole.mesh.devices * left
    assert found.micro_batches * found.micro_batch * found.mesh.batch_shards == found.global_batch
    assert found.job == whole.job


def test_as_many_of_the_ready_hosts_run_as_make_up_a_mesh():
    layouts = Layouts(recipe("4x2"), hosts=4, min_hosts=1)
    assert layouts.of([0, 1, 2, 3]).members == (0, 1, 2, 3)
    assert layouts.of([0, 2, 3]).members == (0, 2)
    assert layouts.of([3]).mesh == "1x2"
    assert Layouts(recipe("4x2"), hosts=4, min_hosts=3).of([1, 2]) is None
    assert layouts.of([]) is None
