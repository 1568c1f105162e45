"""The same numbers on every mesh: first gradients and final parameters are one device's."""

import itertools

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from exajax import InputError, MeshSpec
from exajax.spmd.mesh import AXES

from .runs import assert_same_as_alone

SLOW = pytest.mark.slow
AXIS_SIZES = {"data": 8, "fsdp": 8, "expert": 8, "context": 8, "model": 8, "pipe": 4}


# What moves around a ring depends on how many there are; the other axes are in the larger
# combinations, too.
ALONE = [axis if axis == "context" else pytest.param(axis, marks=SLOW) for axis in AXES]


@pytest.mark.parametrize("axis", ALONE)
def test_each_axis_alone(axis):
    assert_same_as_alone(MeshSpec(**{axis: AXIS_SIZES[axis]}), "mixtral")


@pytest.mark.slow
@pytest.mark.parametrize("pair", list(itertools.combinations(AXES, 2)), ids="-".join)
def test_each_pair_of_axes(pair):
    assert_same_as_alone(MeshSpec(**dict.fromkeys(pair, 2)), "mixtral")


QUICK = [
    ("gpt", "pipe=2,data=2,model=2", {"zero": 1}),
    ("llama", "pipe=2,context=2,model=2", {"schedule": "interleaved", "interleave": 2}),
    ("mixtral", "data=2,fsdp=2,expert=2", {"zero": 0, "micro_batch": 1, "moe": "dropless"}),
]
MORE = [
    ("llama", "pipe=2,fsdp=4", {}),
    ("gpt", "data=2,fsdp=2,model=2", {"zero": 2, "micro_batch": 2}),
    ("gpt", "pipe=4,context=2", {"schedule": "gpipe"}),
    ("llama", "data=2,context=2,model=2", {"packed": True, "remat": "full"}),
    ("llama", "pipe=2,data=4", {"zero": 3, "micro_batch": 2, "remat": "none"}),
    ("llama", "pipe=2,data=4", {"zero": 0}),
    ("llama", "pipe=2,data=4", {"zero": 1}),
    ("llama", "pipe=2,data=4", {"zero": 2}),
    ("llama", "pipe=2,model=4", {}),
    ("llama", "pipe=2,context=4", {}),
    ("llama", "pipe=4,fsdp=2", {}),
    ("llama", "pipe=2,fsdp=4", {"schedule": "gpipe"}),
    ("llama", "pipe=2,fsdp=4", {"schedule": "interleaved", "interleave": 2}),
    ("mixtral", "pipe=2,expert=4", {}),
    ("llama", "pipe=2,data=2,fsdp=2", {"zero": 2, "packed": True}),
    ("gpt", "pipe=2,context=2,data=2", {"packed": True}),
    ("llama", "fsdp=2,context=2,model=2", {"micro_batch": 4, "sequence_parallel": False}),
    ("llama", "fsdp=2,context=2,model=2", {"micro_batch": 4, "remat": "full"}),
    ("llama", "data=2,context=2,model=2", {"zero": 3, "remat": "save-dots-except-mlp"}),
    ("gpt", "fsdp=2,context=2,model=2", {"remat": "none", "packed": True}),
    ("mixtral", "expert=2,context=2,model=2", {"remat": "save-qkv"}),
    ("llama", "data=4,model=2", {"zero": 1, "remat": "offload", "micro_batch": 1}),
    ("mixtral", "pipe=2,expert=2,model=2", {"moe": "dropless"}),
    ("mixtral", "expert=2,context=2,model=2", {"moe": "dropless", "packed": True}),
    ("mixtral", "expert=2,context=2,model=2", {"packed": True}),
    ("mixtral", "pipe=2,expert=2,context=2", {"schedule": "gpipe"}),
    ("mixtral", "pipe=2,data=2,expert=2", {"schedule": "interleaved", "interleave": 2}),
]


def name(case):
    family, mesh, options = case
    return "-".join([family, mesh, *(f"{key}={value}" for key, value in options.items())])


@pytest.mark.parametrize("case", QUICK, ids=name)
def test_larger_combinations(case):
    family, mesh, options = case
    assert_same_as_alone(MeshSpec.parse(mesh), family, **options)


@pytest.mark.slow
@pytest.mark.parametrize("case", MORE, ids=name)
def test_further_combinations(case):
    family, mesh, options = case
    assert_same_as_alone(MeshSpec.parse(mesh), family, **options)


@pytest.mark.slow
@settings(max_examples=10)
@given(
    sizes=st.tuples(*[st.sampled_from([1, 1, 2, 4])] * len(AXES)),
    zero=st.integers(0, 3),
    micro_batch=st.sampled_from([1, 2, None]),
    schedule=st.sampled_from(["gpipe", "1f1b"]),
    moe=st.sampled_from(["capacity", "dropless"]),
)
def test_any_mesh(sizes, zero, micro_batch, schedule, moe):
    mesh = MeshSpec(**dict(zip(AXES, sizes, strict=True)))
    assume(1 < mesh.devices <= 8)
    options = {"zero": zero, "micro_batch": micro_batch, "schedule": schedule, "moe": moe}
    try:
        assert_same_as_alone(mesh, "mixtral", **options)
    except InputError as error:  # a micro-batch that does not divide is said to
        assert error.field == "micro_batch"
        assume(False)
