"""The order of collectives in XLA's serialized CPU programs, and its restoration."""

import functools

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec

from exajax import MeshSpec
from exajax.job import collective_order
from exajax.job.collective_order import SEQUENTIAL

pytestmark = pytest.mark.jax_surface


def lowered(function):
    """A function of one array sharded over 8 devices, as JAX lowers it."""
    mesh = MeshSpec(data=8).build(jax.devices())
    spec = PartitionSpec("data")
    mapped = jax.shard_map(function, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)
    described = jax.ShapeDtypeStruct((64, 256), jnp.float32)
    return jax.jit(mapped).lower(described)


def serialized(function):
    """A function of one array sharded over 8 devices, serialized as in JAX's cache."""
    return lowered(function).compile().runtime_executable().serialize()


def collectives_inside_and_outside_a_loop(x):
    """Only the communicator orders the sums inside the loop with those outside of it."""

    def body(total, _):
        return jnp.sin(jax.lax.psum(total, "data")), None

    looped, _ = jax.lax.scan(body, x, length=3)
    sums = [jax.lax.psum(jnp.cos(x @ jnp.full((256, 256), i)), "data") for i in range(6)]
    return sum(sums, looped)


def collectives_of_one_sequence(x):
    return sum(jax.lax.psum(jnp.cos(x @ jnp.full((256, 256), i)), "data") for i in range(6))


def program(data):
    """The sequence of thunks of a serialized program."""
    executable = collective_order._message("Executable")()
    executable.ParseFromString(data[collective_order._program_begins(data) :])
    return executable.program.sequence


def sequences(sequence):
    """Yields a sequence and all nested ones."""
    yield sequence
    for thunk in sequence.thunks:
        for nested in collective_order._nested(thunk):
            yield from sequences(nested)


def unordered(sequence):
    """The lengths of the sequences that run concurrently and have lost_order their order."""
    lost_order = []
    for each in sequences(sequence):
        users = sum(thunk.HasField("collective") for thunk in each.thunks)
        nested = sum(
            any(map(collective_order._has_collectives, collective_order._nested(thunk)))
            for thunk in each.thunks
        )
        if nested and users + nested > 1 and len(each.thunks) > SEQUENTIAL:
            lost_order.append(len(each.thunks))
    return lost_order


def in_order(sequence):
    """The thunks of a sequence as they run, the calls added by `restore_order` inlined."""
    thunks = []
    for thunk in sequence.thunks:
        if thunk.info.name.startswith("in-order"):
            thunks += in_order(thunk.call.sequences[0])
        else:
            thunks.append((thunk.kind, thunk.info.name))
    return thunks


@functools.cache
def lost_order():
    return serialized(collectives_inside_and_outside_a_loop)


def test_xla_loses_the_order_of_collectives_inside_and_outside_a_loop():
    assert unordered(program(lost_order()))  # else `collective_order` is not needed any more


def test_restored_collectives_run_in_the_order_of_the_compilers_schedule():
    before, after = (
        program(lost_order()),
        program(collective_order.restore_order(lost_order())),
    )
    assert not unordered(after)
    assert in_order(after) == in_order(before)
    assert all(len(each.thunks) <= SEQUENTIAL for each in sequences(after))


def test_every_collective_uses_the_communicator_of_its_sequence():
    for each in sequences(program(collective_order.restore_order(lost_order()))):
        users = [number for entry in each.users for number in entry.thunks]
        for number, thunk in enumerate(each.thunks):
            assert not thunk.HasField("collective") or users.count(number) == 1


def test_an_ordered_program_is_not_changed():
    data = serialized(collectives_of_one_sequence)
    assert len(program(data).thunks) > SEQUENTIAL
    assert collective_order.restore_order(data) is data
    ordered = collective_order.restore_order(lost_order())
    assert collective_order.restore_order(ordered) is ordered


@pytest.mark.parametrize(
    "malformed", [b"", b"malformed", b"\x80" * 9, b"\x03abc", b"\x09pjrt_ifrt\xff"]
)
def test_other_bytes_are_refused(malformed):
    with pytest.raises(ValueError, match="serialized"):
        collective_order.restore_order(malformed)


def test_a_truncated_program_is_refused():
    with pytest.raises(ValueError, match="serialized program"):
        collective_order.restore_order(lost_order()[:-1000])
