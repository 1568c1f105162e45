"""Micro-batches: how often gradients are reduced, counted in the compiled program."""

import jax
import numpy as np
import pytest

from exajax import MeshSpec
from exajax.program import hlo, operations
from exajax.spmd.accumulate import split_micro_batches
from exajax.spmd.mesh import BATCH_AXES
from exajax.spmd.sharding import use_mesh

from .runs import step_on

REDUCING = ("all-reduce", "reduce-scatter")


def reduced_bytes(step, axes):
    """Bytes that reductions over some axes move on one device, loops multiplied out."""
    text = step.update.lower(step.state, step.batch).compile().as_text()
    program = operations.read_program(hlo.parse(text), dict(step.mesh.shape))
    moved = operations.communicated_bytes(program).get(axes, {})
    return sum(moved.get(kind, 0) for kind in REDUCING)


@pytest.mark.parametrize("zero", [0, pytest.param(1, marks=pytest.mark.slow), 2])
def test_replicas_reduce_their_gradients_once_a_step_however_many_micro_batches(zero):
    mesh = MeshSpec(data=4)
    one, four = (step_on(mesh, "llama", zero=zero, micro_batch=4 // n) for n in (1, 4))
    gradients = sum(4 * leaf.size for leaf in jax.tree.leaves(one.state.params))
    for step in (one, four):
        assert reduced_bytes(step, "data") == pytest.approx(gradients, rel=0.01)


def test_sharded_parameters_have_no_replicas_and_reduce_with_every_micro_batch():
    one, four = (step_on(MeshSpec(fsdp=4), "llama", micro_batch=4 // n) for n in (1, 4))
    assert reduced_bytes(four, "fsdp") == pytest.approx(4 * reduced_bytes(one, "fsdp"), rel=0.05)


def test_a_pipelines_replicas_reduce_once_too():
    step = step_on(MeshSpec(pipe=2, data=2), "llama", zero=0, micro_batch=1)
    leaves = jax.tree.leaves_with_path(step.state.params)
    held = sum(  # a stage has its layers, and all of the rest
        4 * np.prod(x.sharding.shard_shape(x.shape) if path[0].key == "stack" else x.shape)
        for path, x in leaves
    )
    assert reduced_bytes(step, "data") == pytest.approx(held, rel=0.01)


def test_a_micro_batch_has_samples_of_every_device_and_none_travels():
    mesh = MeshSpec(data=2, fsdp=2).build(jax.devices()[:4])
    step = step_on(MeshSpec(data=2, fsdp=2), "llama")
    described = step.batch["inputs"]

    def cut(x):
        with use_mesh(mesh):
            return split_micro_batches({"x": x}, 2)["x"]

    compiled = jax.jit(cut, in_shardings=described.sharding).lower(described).compile()
    assert not any(kind in compiled.as_text() for kind in ("all-to-all", "all-gather", "permute"))
    samples = np.arange(described.size, dtype=np.int32).reshape(described.shape)
    parts = np.asarray(compiled(jax.device_put(samples, described.sharding)))
    ways = int(np.prod([mesh.shape[axis] for axis in BATCH_AXES]))
    by_device = samples.reshape(ways, 2, -1, samples.shape[1])
    for number, part in enumerate(parts):
        np.testing.assert_array_equal(part, by_device[:, number].reshape(part.shape))
