from types import SimpleNamespace

import jax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from exajax import InputError, MeshSpec
from exajax.spmd import mesh as mesh_module
from exajax.spmd.mesh import AXES

sizes = st.integers(1, 256)


@given(sizes, sizes, sizes)
def test_a_mesh_reads_back_what_it_writes(data, fsdp, model):
    mesh = MeshSpec(data, fsdp, model)
    if mesh.devices > 1:
        assert MeshSpec.parse(str(mesh)) == mesh


@given(sizes, sizes)
def test_two_numbers_are_data_and_model(data, model):
    mesh = MeshSpec.parse(f"{data}x{model}")
    assert (mesh.data, mesh.fsdp, mesh.model) == (data, 1, model)
    assert mesh.devices == data * model


@given(st.text(alphabet="0123456789x=,-. adtmoelfsp", max_size=20))
def test_any_text_is_a_mesh_or_a_named_error(text):
    try:
        mesh = MeshSpec.parse(text)
    except InputError as error:
        assert str(error).startswith("mesh: ")
        assert "\n" not in str(error)
    else:
        assert mesh.devices >= 1


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("128x", "'model'"),
        ("0x8", "'data'"),
        ("banana=4", "unknown axis 'banana'"),
        ("modle=4", "did you mean 'model'"),
        ("data=2,data=4", "given twice"),
        ("8", "128x8"),
        ("8x8x8", "128x8"),
        ("-1x8", "'data'"),
        ("1073741824x1", "from 1 to 16,777,216"),
    ],
)
def test_a_bad_mesh_is_named(text, says):
    with pytest.raises(InputError, match="mesh") as caught:
        MeshSpec.parse(text)
    assert says in str(caught.value)


def test_neighbours_on_the_model_axis_are_neighbours_on_the_machine():
    mesh = MeshSpec(data=2, fsdp=2, model=2).build(jax.devices())
    assert mesh.axis_names == AXES
    pairs = mesh.devices.reshape(-1, 2)
    assert all(second.id - first.id == 1 for first, second in pairs)


def test_a_mesh_of_other_size_than_the_devices_is_refused():
    with pytest.raises(InputError, match="needs 4 devices and 8 are there"):
        MeshSpec(data=4).build(jax.devices())


def test_devices_are_laid_slice_by_slice_and_host_by_host_in_whatever_order_they_come():
    mesh = MeshSpec(data=2, model=4)
    assert (mesh.build(jax.devices()[::-1]).devices == mesh.build(jax.devices()).devices).all()
    numbers = [(s, host, device) for s in range(2) for host in range(2) for device in range(2)]
    scattered = [
        SimpleNamespace(slice_index=s, process_index=host, id=100 * device + host)
        for s, host, device in reversed(numbers)
    ]
    near = sorted(scattered, key=mesh_module._position)
    assert [(d.slice_index, d.process_index) for d in near] == [place[:2] for place in numbers]
