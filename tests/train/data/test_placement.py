import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import NamedSharding, PartitionSpec

from exajax.spmd.mesh import MeshSpec
from exajax.train.data.placement import local_rows, part_of, place


@given(st.sets(st.integers(0, 7), min_size=1), st.data())
def test_a_part_is_found_among_the_rows_that_are_here(blocks, data):
    whole = np.arange(16 * 6).reshape(16, 6)
    rows = np.sort([row for block in blocks for row in (2 * block, 2 * block + 1)])
    block = data.draw(st.sampled_from(sorted(blocks)))
    index = (slice(2 * block, 2 * block + 2), slice(2, 4))
    np.testing.assert_array_equal(part_of(whole[rows], rows, 16, index), whole[index])


def test_a_batch_lands_on_the_mesh_as_a_whole():
    mesh = MeshSpec.parse("data=4,model=2").build(jax.devices())
    sharding = NamedSharding(mesh, PartitionSpec("data", "model"))
    batch = {"x": jax.ShapeDtypeStruct((8, 6), jnp.int32, sharding=sharding)}
    np.testing.assert_array_equal(local_rows(batch), np.arange(8))
    x = np.arange(48, dtype=np.int32).reshape(8, 6)
    placed = place({"x": x, "left_out": x}, np.arange(8), batch)
    assert placed.keys() == {"x"}
    assert placed["x"].sharding == sharding
    np.testing.assert_array_equal(placed["x"], x)
