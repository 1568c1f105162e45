import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from exajax.program.hlo_collectives import group_axes, replica_groups


@st.composite
def meshes_and_axes(draw):
    sizes = draw(st.lists(st.integers(1, 4), min_size=1, max_size=4))
    varying = draw(st.sets(st.integers(0, len(sizes) - 1), min_size=1))
    return sizes, sorted(varying)


def expected_groups(sizes, varying):
    """Groups of positions that agree on all axes but the varying ones, by enumeration."""
    grid = np.arange(np.prod(sizes)).reshape(sizes)
    fixed = [axis for axis in range(len(sizes)) if axis not in varying]
    groups = []
    for place in itertools.product(*(range(sizes[axis]) for axis in fixed)):
        index = [slice(None)] * len(sizes)
        for axis, at in zip(fixed, place, strict=True):
            index[axis] = at
        groups.append(tuple(grid[tuple(index)].reshape(-1).tolist()))
    return tuple(groups)


@given(meshes_and_axes())
def test_every_notation_names_the_same_groups(case):
    sizes, varying = case
    groups = expected_groups(sizes, varying)
    fixed = [axis for axis in range(len(sizes)) if axis not in varying]
    count, width, devices = len(groups), len(groups[0]), int(np.prod(sizes))
    dims = ",".join(map(str, sizes))
    order = ",".join(map(str, fixed + varying))
    names = ",".join(f"'axis_{i}'={size}" for i, size in enumerate(sizes))
    axes = ",".join(f"'axis_{i}'" for i in varying)
    for text in (
        "replica_groups={" + ",".join("{" + ",".join(map(str, g)) + "}" for g in groups) + "}",
        f"replica_groups=[{count},{width}]<=[{dims}]T({order})",
        f"channel_id=1, replica_groups=mesh[{names}] {{{axes}}}, dimensions={{0}}",
        f"replica_groups=[{count},{width}]<=[{dims}]T({order}), use_global_device_ids=true",
        f"replica_groups=mesh[{names}], device_ids=([{devices}]) {{{axes}}}, dimensions={{0}}",
    ):
        assert replica_groups(text, devices) == groups


def test_a_mesh_in_another_order_is_read_through_its_device_ids():
    text = "replica_groups=mesh['a'=2,'b'=3], device_ids=([3,2]T(1,0)) {'b'}"
    assert replica_groups(text, 6) == ((0, 2, 4), (1, 3, 5))


def test_no_groups_are_one_group_of_all():
    assert replica_groups("replica_groups={}", 4) == ((0, 1, 2, 3),)


def test_groups_of_many_devices_are_read_once_for_all_that_share_them():
    text = "channel_id={}, replica_groups=[8,2048]<=[2048,8]T(1,0), use_global_device_ids=true"
    first, second = (replica_groups(text.format(channel), 16384) for channel in (1, 2))
    assert first is second
    assert first[3][:3] == (3, 11, 19)


def test_an_unknown_notation_is_an_error_and_never_a_guess():
    with pytest.raises(ValueError, match="replica groups"):
        replica_groups("replica_groups=mesh['a'=4] {'a':(1)2}", 4)
    with pytest.raises(ValueError, match="replica groups"):
        replica_groups("channel_id=1", 4)


@given(meshes_and_axes())
def test_groups_map_back_to_the_axes_they_came_from(case):
    sizes, varying = case
    mesh = {f"axis{i}": size for i, size in enumerate(sizes)}
    named = [f"axis{i}" for i in varying if sizes[i] > 1]
    for group in expected_groups(sizes, varying):
        assert group_axes(group, mesh) == ("+".join(named) or "none")
