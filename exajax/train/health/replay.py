"""The gradient of one micro-batch, computed by every replica: programs whose results are equal."""

from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from exajax import units
from exajax.errors import InputError
from exajax.spmd import compiler_options
from exajax.spmd.loss_functions import BatchPlan, loss_functions
from exajax.spmd.mesh import AXES, BATCH_AXES
from exajax.spmd.parameters import cast, shardings_of, split_module, with_shardings
from exajax.spmd.pipeline_schedule import Schedule
from exajax.spmd.sharding import Rules, manual, shard_over, use_mesh
from exajax.spmd.step import COMPUTE_DTYPES, TrainStep, local_bytes
from exajax.spmd.workload import Batch, Stages, Tree
from exajax.train import device_memory
from exajax.train.health.device_copies import digests

REPLICAS = ("data", "fsdp")
"""Mesh axes along which devices do the same work on other samples."""

GROUP = tuple(axis for axis in AXES if axis not in REPLICAS)
"""Mesh axes whose devices work together on the samples of a replica."""


class Replay:
    """The programs of a replay, compiled.

    Attributes:
        share: `share(params, batch)` returns what a replica works with: the parameters in the type
            that is computed with, gathered where `data` or `fsdp` divides them, and the first
            samples of the batch. A replica that has its own copy of a parameter keeps it.
        gradient: `gradient(*shared)` returns digests of the gradient, uint32 [axes of the mesh,
            parameters, 2], each with the device that it is of. Between replicas nothing is
            exchanged; within one, what `GROUP` divides is.

    Args:
        step: the workload on its mesh.

    Raises:
        InputError: a device has no room for it.
    """

    def __init__(self, step: TrainStep) -> None:
        mesh, layout, workload = step.mesh, step.options, step.workload
        dtype, rules = COMPUTE_DTYPES[layout["precision"]], layout["rules"]
        module, variables = split_module(workload.build)
        place = shardings_of(variables, mesh, ("expert", "pipe"), rules)
        schedule, samples = _plan(step)
        plan = BatchPlan(schedule.micro_batches if schedule else 1, (), schedule)
        _, value_and_grad = loss_functions(workload, module, step.weigh, place, plan)
        rows = _rows(step, samples, rules)

        def share(params: Tree, batch: Batch) -> tuple[Tree, Batch]:
            return cast(params, dtype), {name: leaf[:samples] for name, leaf in batch.items()}

        def alone(params: Tree, batch: Batch) -> jax.Array:
            return _group_digests(value_and_grad(params, batch)[1], place, mesh)

        def gradient(params: Tree, batch: Batch) -> jax.Array:
            whole, out = PartitionSpec(), _table(REPLICAS)
            with use_mesh(mesh, rules):
                return manual(alone, REPLICAS, (whole, whole), out)(params, batch)

        placed = place, {name: leaf.sharding for name, leaf in rows.items()}
        shapes = jax.eval_shape(share, step.state.params, dict(step.batch))
        self.share = _compiled(
            jax.jit(share, out_shardings=placed), mesh, step.state.params, dict(step.batch)
        )
        self.gradient = _compiled(
            jax.jit(gradient, in_shardings=placed, out_shardings=NamedSharding(mesh, _table(AXES))),
            mesh,
            with_shardings(shapes[0], place),
            rows,
        )
        _check_fits(self.gradient, step)


def _plan(step: TrainStep) -> tuple[Schedule | None, int]:
    """Returns the least that goes through a pipeline, and the samples that a replica replays."""
    shards = 1
    for axis in BATCH_AXES:
        shards *= step.mesh.shape[axis]
    samples = step.workload.samples // (shards * step.options["micro_batches"])
    samples *= step.mesh.shape["expert"]
    if step.schedule is None:
        return None, samples
    assert isinstance(step.workload.loss, Stages)
    stages, parts = step.schedule.stages, step.workload.loss.parts
    micro_batches = stages if parts > 1 else 1
    plan = Schedule.of(step.options["schedule"], stages, parts, micro_batches)
    return plan, samples * micro_batches


def _rows(step: TrainStep, samples: int, rules: Rules) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns shapes and shardings of the samples that every replica is given."""
    within = {**rules, "batch": tuple(axis for axis in rules["batch"] if axis not in REPLICAS)}
    rows = {}
    for name, leaf in step.workload.batch.items():
        shape = (samples, *leaf.shape[1:])
        names = ("batch", *[None] * (len(shape) - 1))
        sharding = NamedSharding(step.mesh, shard_over(names, shape, step.mesh, (), within))
        rows[name] = jax.ShapeDtypeStruct(shape, leaf.dtype, sharding=sharding)
    return rows


def _group_digests(gradients: Tree, place: Tree, mesh: Mesh) -> jax.Array:
    """Returns digests of what every device of a replica has of the gradients."""
    axes = [axis for axis in GROUP if mesh.shape[axis] > 1]
    if not axes:
        return digests(gradients)
    specs = jax.tree.map(lambda sharding: sharding.spec, place)
    return manual(digests, axes, (specs,), _table(axes))(gradients)


def _table(axes: Any) -> PartitionSpec:
    return PartitionSpec(*[axis if axis in axes else None for axis in AXES])


def _compiled(program: Any, mesh: Mesh, *abstract: Any) -> jax.stages.Compiled:
    platform = mesh.devices.flat[0].platform
    # Sums whose order is left to chance would differ on devices that are all in order.
    more = {"xla_gpu_exclude_nondeterministic_ops": True} if platform == "gpu" else {}
    return compiler_options.compile(program.lower(*abstract), platform, more)


def _check_fits(gradient: jax.stages.Compiled, step: TrainStep) -> None:
    needed = device_memory.needed_bytes(gradient) + local_bytes(step.state)
    capacity = device_memory.capacity_bytes(jax.local_devices()[0])
    if needed > capacity:
        raise InputError(
            "audit_every",
            f"a device needs {units.show(needed, 'B')} to replay a micro-batch beside the state, "
            f"with the parameters that data and fsdp divide gathered, and has "
            f"{units.show(capacity, 'B')}",
            "leave it out, or give a mesh with more of model, pipe or expert",
        )
