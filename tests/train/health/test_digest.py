"""A digest sees every flipped bit, and neither the mesh nor how layers are counted."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from exajax.train.health import digest

MESH = jax.make_mesh((2, 4), ("a", "b"), axis_types=(AxisType.Auto,) * 2)
TYPES = ["float32", "bfloat16", "float8_e4m3fn", "int32", "uint8", "bool"]


def digest_of(array, *axes):
    sharding = NamedSharding(MESH, PartitionSpec(*axes))
    described = {"x": jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=sharding)}
    digests = digest.digester(described, MESH)({"x": jax.device_put(array, sharding)})
    return digest.named(digests, described)["x"]


def some(shape, dtype="float32", seed=0):
    found = np.random.default_rng(seed).integers(0, 256, (*shape, jnp.dtype(dtype).itemsize))
    if dtype == "bool":
        return (found[..., 0] % 2).astype(bool)
    return found.astype(np.uint8).view(jnp.dtype(dtype))[..., 0]


@pytest.mark.parametrize("dtype", TYPES)
def test_it_is_the_same_on_every_mesh_and_for_layers_in_parts(dtype):
    array = some((8, 16, 4), dtype)
    expected = digest_of(array)
    assert digest_of(array, "a", "b") == expected
    assert digest_of(array, None, ("a", "b")) == expected
    assert digest_of(array.reshape(2, 4, 16, 4), None, "b", "a") == expected
    assert digest_of(array[::-1].copy()) != expected


@settings(max_examples=20)
@given(st.sampled_from(TYPES[:-1]), st.integers(0, 8 * 16 - 1), st.integers(0, 31))
def test_every_flipped_bit_changes_it(dtype, place, bit):
    array = some((8, 16), dtype)
    flipped = array.copy()
    bits = flipped.reshape(-1).view(f"uint{8 * array.itemsize}")
    bits[place] ^= bits.dtype.type(1 << bit % (8 * array.itemsize))
    assert digest_of(flipped, "a", "b") != digest_of(array, "a", "b")


def test_flips_do_not_make_up_for_each_other():
    array = np.ones((64, 64), np.float32)
    flipped = array.copy()
    flipped[3, 7] = flipped[9, 1] = -1  # the highest bit of two elements: 2 x 2^31 is 0 mod 2^32
    swapped = array.copy()
    swapped[0, 0], swapped[5, 5] = 2, 1
    twice = array.copy()
    twice[5, 5] = 2
    assert len({digest_of(x) for x in (array, flipped, swapped, twice)}) == 4


def test_zeros_and_nans_are_told_apart_by_their_bits():
    zero = np.zeros(4, np.float32)
    quiet = np.full(4, np.float32("nan"))
    other = quiet.copy()
    other.view(np.uint32)[0] ^= 1
    assert digest_of(zero) != digest_of(-zero)
    assert digest_of(quiet) != digest_of(other)
    assert digest_of(quiet) == digest_of(quiet.copy())
