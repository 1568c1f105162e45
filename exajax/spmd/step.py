"""The train step: loss, gradients and optimizer update as one function, jitted over a mesh.

There is only this one. With attached devices it trains; with described devices it is compiled ahead
of time and priced. Both start at `TrainStep.of`.
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, TypedDict

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from exajax.errors import InputError
from exajax.spmd.accumulate import Weigh
from exajax.spmd.loss_functions import (
    BatchPlan,
    GradientFunction,
    LossFunction,
    check_is_a_mean,
    loss_functions,
    replica_axes,
    weight_function,
)
from exajax.spmd.mesh import BATCH_AXES
from exajax.spmd.parameters import (
    cast,
    initial_parameters,
    shardings_of,
    split_module,
    with_shardings,
)
from exajax.spmd.pipeline_schedule import Schedule
from exajax.spmd.sharding import RULES, Rules, shard_over, use_mesh, zero_axes
from exajax.spmd.weighted import Loss
from exajax.spmd.workload import Batch, Stages, Tree, Workload


class TrainState(NamedTuple):
    """The state of training: everything that a step changes.

    Attributes:
        params: master parameters, a nested dict of arrays.
        optimizer: state of the optax transformation.
        step: number of completed steps, int32.
    """

    params: Tree
    optimizer: Tree
    step: Any


COMPUTE_DTYPES = {
    "fp32": jnp.float32,
    "bf16": jnp.bfloat16,
    "pure-bf16": jnp.bfloat16,
    "fp8": jnp.bfloat16,
}
"""Type of forward and backward passes; with `fp8` the module casts the operands of its products."""

MASTER_DTYPES = {"pure-bf16": jnp.bfloat16}
"""Type of master parameters and moments, where it is not fp32."""


class StepOptions(TypedDict, total=False):
    """Keyword arguments of `TrainStep.of`, which explains them."""

    zero: int
    precision: str
    micro_batches: int
    schedule: str
    rules: Rules
    skip_bad: bool


@dataclass(frozen=True)
class TrainStep:
    """A workload on a mesh: its jitted functions, with the shapes and shardings of their arguments.

    Attributes:
        workload: the workload.
        mesh: the mesh.
        state: shapes and shardings of the state.
        batch: shapes and shardings of a batch.
        init: `init(seed)` returns the first state, sharded from the start.
        update: `update(state, batch)` returns the next state and the metrics `loss`, `grad_norm`
            and, where it is known, `learning_rate`. The memory of `state` is reused.
        evaluate: `evaluate(params, batch)` returns the loss: a scalar, or `Weighted` if the
            workload's loss is, so that losses of several batches can be added.
        weigh: `weigh(batch)` returns the weight of a batch; None if the loss is a plain mean.
        schedule: schedule of the pipeline; None without a pipeline.
        options: the options that the step was made with.
    """

    workload: Workload
    mesh: Mesh
    state: TrainState
    batch: dict[str, jax.ShapeDtypeStruct]
    init: Callable[[Any], TrainState]
    update: Any
    evaluate: Any
    weigh: Weigh | None
    schedule: Schedule | None
    options: StepOptions

    @classmethod
    def of(
        cls,
        workload: Workload,
        mesh: Mesh,
        *,
        zero: int = 3,
        precision: str = "bf16",
        micro_batches: int = 1,
        schedule: str = "1f1b",
        rules: Rules = RULES,
        skip_bad: bool = False,
    ) -> "TrainStep":
        """The train step of a workload on a mesh, with pinned shardings of inputs and outputs.

        Args:
            workload: the workload.
            mesh: a mesh with the axes of `exajax.spmd.mesh`, of attached or described devices.
            zero: ZeRO level of the data axis, 0 to 3.
            precision: a key of `COMPUTE_DTYPES`.
            micro_batches: parts of a batch that are processed one after the other, or flow through
                the pipeline.
            schedule: pipeline schedule, one of `exajax.spmd.pipeline_schedule.SCHEDULES`.
            rules: mesh axes that divide each logical axis of parameters and activations.
            skip_bad: whether to skip an update whose loss or gradient norm is not finite:
                parameters and optimizer state stay bit-identical, and `state.step` advances.

        Raises:
            InputError: the mesh does not divide the batch or the layers, the module has state that
                is not a parameter, the loss is neither a scalar nor `Weighted`, or it is a scalar
                that cannot be computed in micro-batches.
        """
        _check_divides(workload, mesh, micro_batches)
        module, variables = split_module(workload.build)
        shardings = {
            kind: shardings_of(variables, mesh, axes, rules)
            for kind, axes in zero_axes(zero).items()
        }
        pipeline_schedule = None
        if mesh.shape["pipe"] > 1:
            assert isinstance(workload.loss, Stages)
            pipeline_schedule = Schedule.of(
                schedule, mesh.shape["pipe"], workload.loss.parts, micro_batches
            )
        with use_mesh(mesh, rules):
            shapes = jax.eval_shape(
                lambda p: cast(p, COMPUTE_DTYPES[precision]), nnx.to_pure_dict(variables)
            )
            weigh = weight_function(workload, module, shapes)
            if not weigh and (pipeline_schedule or micro_batches > 1):
                check_is_a_mean(workload, module, shapes)
        plan = BatchPlan(micro_batches, replica_axes(mesh, zero), pipeline_schedule)
        value, value_and_grad = loss_functions(
            workload, module, weigh, shardings["gradients"], plan
        )
        options: StepOptions = {
            "zero": zero,
            "precision": precision,
            "micro_batches": micro_batches,
            "schedule": schedule,
            "rules": rules,
            "skip_bad": skip_bad,
        }
        functions = _StepFunctions(workload, mesh, options, shardings, value, value_and_grad)
        return functions.jit(weigh, pipeline_schedule)


@dataclass(frozen=True, eq=False)
class _StepFunctions:
    """The three functions of a train step, before they are jitted.

    Attributes:
        workload: the workload.
        mesh: the mesh.
        options: options of `TrainStep.of`.
        shardings: shardings of `parameters`, `gradients` and `optimizer`, each a tree like that
            of the parameters.
        value: function of (params, batch) for the loss.
        value_and_grad: function of (params, batch) for the loss and its gradients.
    """

    workload: Workload
    mesh: Mesh
    options: StepOptions
    shardings: dict[str, Tree]
    value: LossFunction
    value_and_grad: GradientFunction

    def init(self, seed: jax.Array) -> TrainState:
        """The state before the first step."""
        params = initial_parameters(self.workload.build, seed)
        if self.options["precision"] in MASTER_DTYPES:
            params = cast(params, MASTER_DTYPES[self.options["precision"]])
        return TrainState(params, self.workload.optimizer.init(params), jnp.zeros((), jnp.int32))

    def loss(self, params: Tree, batch: Batch) -> Loss:
        """The loss of a batch, without gradients."""
        with use_mesh(self.mesh, self.options["rules"]):
            return self.value(self._to_compute_dtype(params), batch)

    def update(self, state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, jax.Array]]:
        """The state after one optimizer step, and the metrics of the step."""
        with use_mesh(self.mesh, self.options["rules"]):
            value, gradients = self.value_and_grad(self._to_compute_dtype(state.params), batch)
        gradients = jax.tree.map(lambda g, p: g.astype(p.dtype), gradients, state.params)
        gradients = jax.lax.with_sharding_constraint(gradients, self.shardings["gradients"])
        with jax.named_scope("optimizer"):
            changes, moments = self.workload.optimizer.update(
                gradients, state.optimizer, state.params
            )
            params = optax.apply_updates(state.params, changes)
            metrics = {"loss": value, "grad_norm": optax.tree.norm(gradients)}
            metrics |= _learning_rate(self.workload, state, moments)
            if self.options["skip_bad"]:
                good = jnp.isfinite(metrics["loss"]) & jnp.isfinite(metrics["grad_norm"])
                params, moments = jax.tree.map(
                    functools.partial(jnp.where, good),
                    (params, moments),
                    (state.params, state.optimizer),
                )
        return TrainState(params, moments, state.step + 1), metrics

    def jit(self, weigh: Weigh | None, schedule: Schedule | None) -> TrainStep:
        """The train step of these functions, jitted with pinned shardings."""
        workload, mesh = self.workload, self.mesh
        replicated = NamedSharding(mesh, PartitionSpec())
        shapes = jax.eval_shape(self.init, jax.ShapeDtypeStruct((), jnp.uint32))
        state_shardings = self._state_shardings(shapes, replicated)
        rules = self.options["rules"]
        batch_shardings = {
            name: NamedSharding(mesh, shard_over(_batch_names(leaf), leaf.shape, mesh, (), rules))
            for name, leaf in workload.batch.items()
        }
        rate = jax.eval_shape(lambda s: _learning_rate(workload, s, s.optimizer), shapes)
        metrics = dict.fromkeys(("loss", "grad_norm", *rate), replicated)
        return TrainStep(
            workload,
            mesh,
            state=with_shardings(shapes, state_shardings),
            batch=with_shardings(dict(workload.batch), batch_shardings),
            init=jax.jit(self.init, out_shardings=state_shardings),
            update=jax.jit(
                self.update,
                in_shardings=(state_shardings, batch_shardings),
                out_shardings=(state_shardings, metrics),
                donate_argnums=0,
            ),
            evaluate=jax.jit(
                self.loss,
                in_shardings=(state_shardings.params, batch_shardings),
                out_shardings=replicated,
            ),
            weigh=weigh,
            schedule=schedule,
            options=self.options,
        )

    def _to_compute_dtype(self, params: Tree) -> Tree:
        """Parameters in the type to compute with, converted before they are gathered."""
        converted = cast(params, COMPUTE_DTYPES[self.options["precision"]])
        return jax.lax.with_sharding_constraint(converted, self.shardings["parameters"])

    def _state_shardings(self, shapes: TrainState, replicated: NamedSharding) -> TrainState:
        """Shardings of a state with given shapes."""
        moments = optax.tree_map_params(
            self.workload.optimizer,
            _moment_sharding,
            shapes.optimizer,
            self.shardings["optimizer"],
            shapes.params,
            transform_non_params=lambda _: replicated,
            is_leaf=lambda leaf: isinstance(leaf, optax.MaskedNode),
        )
        return TrainState(self.shardings["parameters"], moments, replicated)


def _check_divides(workload: Workload, mesh: Mesh, micro_batches: int) -> None:
    """Raises an `InputError` if the mesh cannot divide the batch or the layers."""
    shards = math.prod(mesh.shape[axis] for axis in BATCH_AXES)
    if workload.samples % (shards * micro_batches):
        parts = f"{shards} parts of the mesh"
        if micro_batches > 1:
            parts = f"{micro_batches} micro-batches of the {parts}"
        raise InputError(
            "batch",
            f"{workload.samples} samples do not divide into the {parts}",
            f"give a multiple of {shards * micro_batches}",
        )
    if mesh.shape["pipe"] > 1 and not isinstance(workload.loss, Stages):
        raise InputError(
            "mesh",
            "a pipeline needs a loss in stages, and this workload's is one function",
            "give the workload an exajax.Stages, or a mesh without pipe",
        )


def _learning_rate(workload: Workload, state: TrainState, after: Tree) -> dict[str, jax.Array]:
    """The metric `learning_rate` of an update; empty if it is not known.

    A skipped update does not advance the optimizer's schedule, so the count of the schedule is read
    from the optimizer's state before the update, or is `state.step` if it has not exactly one.
    Without a schedule of the workload the rate is read from the state that
    `optax.inject_hyperparams` has after the update.

    Args:
        workload: the workload.
        state: the state before the update.
        after: the optimizer's state after it.
    """
    if workload.learning_rate is None:
        entries = optax.tree.get_all_with_path(after, "learning_rate")
        rates = [leaf for _, leaf in entries if isinstance(leaf, jax.Array) and not leaf.shape]
        return {"learning_rate": jnp.asarray(rates[0], jnp.float32)} if len(rates) == 1 else {}
    is_schedule = lambda leaf: isinstance(leaf, optax.ScaleByScheduleState)  # noqa: E731
    leaves = jax.tree.leaves(state.optimizer, is_leaf=is_schedule)
    counts = [leaf.count for leaf in leaves if is_schedule(leaf)]
    count = counts[0] if len(counts) == 1 else state.step
    return {"learning_rate": jnp.asarray(workload.learning_rate(count), jnp.float32)}


def local_bytes(tree: Tree) -> int:
    """Bytes on one device of a tree of arrays, or of shapes with shardings."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )


def _moment_sharding(moment: Any, sharding: NamedSharding, param: jax.ShapeDtypeStruct) -> Any:
    """The sharding of an optimizer moment: as its parameter, on those axes that the moment has.

    A moment that is a mean over an axis has size 1 there, or lacks the axis (`optax.adafactor`). A
    moment of any other shape is replicated. A `MaskedNode` stands for a parameter that another
    optimizer updates.
    """
    if isinstance(moment, optax.MaskedNode):
        return moment
    spec = (*sharding.spec, *[None] * (len(param.shape) - len(sharding.spec)))
    if len(moment.shape) == len(param.shape):
        pairs = zip(moment.shape, param.shape, spec, strict=True)
        entries = [entry if size == full else None for size, full, entry in pairs]
        return NamedSharding(sharding.mesh, PartitionSpec(*entries))
    for axis in range(len(param.shape)):
        if moment.shape == (*param.shape[:axis], *param.shape[axis + 1 :]):
            return NamedSharding(sharding.mesh, PartitionSpec(*spec[:axis], *spec[axis + 1 :]))
    return NamedSharding(sharding.mesh, PartitionSpec())


def _batch_names(leaf: jax.ShapeDtypeStruct) -> tuple[str | None, ...]:
    return ("batch", *[None] * (len(leaf.shape) - 1))
