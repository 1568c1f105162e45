"""Serialized programs of XLA, for CPU devices: whether their collectives keep one order."""

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
    """Returns a function of one array, sharded over 8 devices, as JAX lowers it."""
    mesh = MeshSpec(data=8).build(jax.devices())
    spec = PartitionSpec("data")
    mapped = jax.shard_map(function, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)
    described = jax.ShapeDtypeStruct((64, 256), jnp.float32)
    return jax.jit(mapped).lower(described)


def serialized(function):
    """Returns what JAX's cache would keep of a function of one array, sharded over 8 devices."""
    return lowered(function).compile().runtime_executable().serialize()


def collectives_in_a_loop_and_beside_it(x):
    """Nothing but the communicator orders the sums of the loop with the sums beside it."""

    def turn(total, _):
        return jnp.sin(jax.lax.psum(total, "data")), None

    looped, _ = jax.lax.scan(turn, x, length=3)
    sums = [jax.lax.psum(jnp.cos(x @ jnp.full((256, 256), i)), "data") for i in range(6)]
    return sum(sums, looped)


def collectives_beside_each_other(x):
    return sum(jax.lax.psum(jnp.cos(x @ jnp.full((256, 256), i)), "data") for i in range(6))


def program(data):
    """Returns the sequence of thunks of a serialized program."""
    executable = collective_order._message("Executable")()
    executable.ParseFromString(data[collective_order._program_begins(data) :])
    return executable.program.sequence


def sequences(sequence):
    """Yields a sequence and all that are in it."""
    yield sequence
    for thunk in sequence.thunks:
        for nested in collective_order._nested(thunk):
            yield from sequences(nested)


def without_order(sequence):
    """Returns the lengths of sequences that run concurrently and have lost an order."""
    lost = []
    for each in sequences(sequence):
        users = sum(thunk.HasField("collective") for thunk in each.thunks)
        nested = sum(
            any(map(collective_order._has_collectives, collective_order._nested(thunk)))
            for thunk in each.thunks
        )
        if nested and users + nested > 1 and len(each.thunks) > SEQUENTIAL:
            lost.append(len(each.thunks))
    return lost


def in_order(sequence):
    """Returns the thunks of a sequence as they run, those of the calls made here in their place."""
    thunks = []
    for thunk in sequence.thunks:
        if thunk.info.name.startswith("in-order"):
            thunks += in_order(thunk.call.sequences[0])
        else:
            thunks.append((thunk.kind, thunk.info.name))
    return thunks


@functools.cache
def lost():
    return serialized(collectives_in_a_loop_and_beside_it)


def test_xla_loses_the_order_of_collectives_in_a_loop_and_beside_it():
    assert without_order(program(lost()))  # else `collective_order` has no reason to be


def test_what_has_lost_its_order_runs_one_after_the_other_as_the_compiler_scheduled_it():
    before, after = program(lost()), program(collective_order.put_back(lost()))
    assert not without_order(after)
    assert in_order(after) == in_order(before)
    assert all(len(each.thunks) <= SEQUENTIAL for each in sequences(after))


def test_every_collective_has_the_communicator_of_its_sequence():
    for each in sequences(program(collective_order.put_back(lost()))):
        users = [number for entry in each.users for number in entry.thunks]
        for number, thunk in enumerate(each.thunks):
            assert not thunk.HasField("collective") or users.count(number) == 1


def test_what_has_an_order_is_left_alone():
    data = serialized(collectives_beside_each_other)
    assert len(program(data).thunks) > SEQUENTIAL
    assert collective_order.put_back(data) is data
    ordered = collective_order.put_back(lost())
    assert collective_order.put_back(ordered) is ordered


@pytest.mark.parametrize(
    "rubbish", [b"", b"rubbish", b"\x80" * 9, b"\x03abc", b"\x09pjrt_ifrt\xff"]
)
def test_other_bytes_are_refused(rubbish):
    with pytest.raises(ValueError, match="serialized"):
        collective_order.put_back(rubbish)


def test_a_program_that_was_cut_off_is_refused():
    with pytest.raises(ValueError, match="serialized program"):
        collective_order.put_back(lost()[:-1000])
