"""The train step: loss, gradients and update as one function, jitted over any mesh.

It is written once. On attached devices it trains; on described devices it is compiled ahead of
time and priced. Both roads start at `TrainStep.of`.
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypedDict

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from exajax.errors import InputError
from exajax.spmd import accumulate, pipeline, ratios, weighted
from exajax.spmd.mesh import BATCH_AXES
from exajax.spmd.parameters import bind, cast, described, draw, shardings_of
from exajax.spmd.pipeline import Schedule
from exajax.spmd.sharding import RULES, Rules, constrain_to, shard_over, use_mesh, zero_axes
from exajax.spmd.weighted import Loss
from exajax.spmd.workload import Batch, Stages, Tree, Workload


class TrainState(NamedTuple):
    """Everything a step changes.

    Attributes:
        params: master parameters, a nested dict of arrays.
        optimizer: the state of the optax transformation.
        step: number of updates done, int32.
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
"""Type that the forward and backward pass compute in; which products are fp8 is the module's."""

MASTER_DTYPES = {"pure-bf16": jnp.bfloat16}
"""Type of parameters and moments, where it is not fp32."""


class StepOptions(TypedDict, total=False):
    """How a workload is laid over a mesh: the options of `TrainStep.of`, explained there."""

    zero: int
    precision: str
    micro_batches: int
    schedule: str
    rules: Rules
    skip_bad: bool


@dataclass(frozen=True)
class TrainStep:
    """A workload on a mesh.

    Attributes:
        workload: what is computed.
        mesh: where.
        state: shapes and shardings of the state.
        batch: shapes and shardings of a batch.
        init: `init(seed)` makes the first state, sharded from the start.
        update: `update(state, batch)` returns the next state and `{"loss", "grad_norm"}`, with
            `learning_rate` where it is known; the given state's memory is reused.
        evaluate: `evaluate(params, batch)` returns the loss, a scalar; or where the workload's is
            one `Weighted`, of which those of several batches can be added up.
        weigh: `weigh(batch)` returns the weight of a batch; None where the loss is a plain mean.
        schedule: of the pipeline, None without one.
        layout: the options that it was made with.
    """

    workload: Workload
    mesh: Mesh
    state: TrainState
    batch: dict[str, jax.ShapeDtypeStruct]
    init: Callable[[Any], TrainState]
    update: Any
    evaluate: Any
    weigh: accumulate.Weigh | None = None
    schedule: Schedule | None = None
    layout: StepOptions = field(default_factory=StepOptions)

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
        """Jits a workload over a mesh, with the shardings of inputs and outputs pinned.

        Args:
            workload: what to compute.
            mesh: a mesh with the axes of `exajax.spmd.mesh`, of attached or described devices.
            zero: ZeRO level of the data axis, 0 to 3.
            precision: a key of `COMPUTE_DTYPES`.
            micro_batches: parts that a batch is worked on in, one after the other, or through
                the pipeline.
            schedule: of a pipeline, one of `exajax.spmd.pipeline.SCHEDULES`.
            rules: mesh axes that divide the logical axes of parameters and activations.
            skip_bad: whether an update is left out whose loss or gradient norm is not finite:
                parameters and optimizer keep their bits, and the step counts.

        Raises:
            InputError: the mesh does not divide the batch or the layers, the module holds state
                that is not parameters, the loss is neither a scalar nor `Weighted`, or it is a
                scalar that cannot be computed in micro-batches.
        """
        _check_divides(workload, mesh, micro_batches)
        module, variables = bind(workload.build)
        spec = {
            kind: shardings_of(variables, mesh, over, rules)
            for kind, over in zero_axes(zero).items()
        }

        plan = None
        if mesh.shape["pipe"] > 1:
            assert isinstance(workload.loss, Stages)
            plan = Schedule.of(schedule, mesh.shape["pipe"], workload.loss.parts, micro_batches)
        with use_mesh(mesh, rules):
            narrowed = jax.eval_shape(
                lambda p: cast(p, COMPUTE_DTYPES[precision]), nnx.to_pure_dict(variables)
            )
            weigh = weight_of(workload, module, narrowed)
            if not weigh and (plan or micro_batches > 1):
                _check_is_a_mean(workload, module, narrowed)
        value, value_and_grad = losses(
            workload, module, weigh, spec["gradients"], mesh, zero, micro_batches, plan
        )

        def narrow(params: Tree) -> Tree:
            # Cast while still sharded, so that what is gathered is the narrow type.
            narrowed = cast(params, COMPUTE_DTYPES[precision])
            return jax.lax.with_sharding_constraint(narrowed, spec["parameters"])

        def loss(params: Tree, batch: Batch) -> Loss:
            with use_mesh(mesh, rules):
                return value(narrow(params), batch)

        def init(seed: jax.Array) -> TrainState:
            params = draw(workload.build, seed)
            if precision in MASTER_DTYPES:
                params = cast(params, MASTER_DTYPES[precision])
            return TrainState(params, workload.optimizer.init(params), jnp.zeros((), jnp.int32))

        def update(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, jax.Array]]:
            with use_mesh(mesh, rules):
                value, gradients = value_and_grad(narrow(state.params), batch)
            gradients = jax.tree.map(lambda g, p: g.astype(p.dtype), gradients, state.params)
            gradients = jax.lax.with_sharding_constraint(gradients, spec["gradients"])
            with jax.named_scope("optimizer"):
                changes, moments = workload.optimizer.update(
                    gradients, state.optimizer, state.params
                )
                params = optax.apply_updates(state.params, changes)
                metrics = {"loss": value, "grad_norm": optax.tree.norm(gradients)}
                metrics |= _learning_rate(workload, state, moments)
                if skip_bad:
                    good = jnp.isfinite(metrics["loss"]) & jnp.isfinite(metrics["grad_norm"])
                    params, moments = jax.tree.map(
                        functools.partial(jnp.where, good),
                        (params, moments),
                        (state.params, state.optimizer),
                    )
            return TrainState(params, moments, state.step + 1), metrics

        whole = NamedSharding(mesh, PartitionSpec())
        abstract = jax.eval_shape(init, jax.ShapeDtypeStruct((), jnp.uint32))
        rate = jax.eval_shape(lambda s: _learning_rate(workload, s, s.optimizer), abstract)
        shardings = TrainState(
            spec["parameters"],
            optax.tree_map_params(
                workload.optimizer,
                _moment_sharding,
                abstract.optimizer,
                spec["optimizer"],
                abstract.params,
                transform_non_params=lambda _: whole,
                is_leaf=lambda leaf: isinstance(leaf, optax.MaskedNode),
            ),
            whole,
        )
        batch_shardings = {
            name: NamedSharding(mesh, shard_over(_batch_names(leaf), leaf.shape, mesh, (), rules))
            for name, leaf in workload.batch.items()
        }
        return cls(
            workload,
            mesh,
            state=described(abstract, shardings),
            batch=described(dict(workload.batch), batch_shardings),
            init=jax.jit(init, out_shardings=shardings),
            update=jax.jit(
                update,
                in_shardings=(shardings, batch_shardings),
                out_shardings=(shardings, dict.fromkeys(("loss", "grad_norm", *rate), whole)),
                donate_argnums=0,
            ),
            evaluate=jax.jit(
                loss, in_shardings=(shardings.params, batch_shardings), out_shardings=whole
            ),
            weigh=weigh,
            schedule=plan,
            layout={
                "zero": zero,
                "precision": precision,
                "micro_batches": micro_batches,
                "schedule": schedule,
                "rules": rules,
                "skip_bad": skip_bad,
            },
        )


def losses(
    workload: Workload,
    module: Callable[[Tree], nnx.Module],
    weigh: accumulate.Weigh | None,
    gradients: Tree,
    mesh: Mesh,
    zero: int,
    micro_batches: int,
    plan: Schedule | None,
) -> tuple[Callable[[Tree, Batch], Loss], Callable[[Tree, Batch], tuple[jax.Array, Tree]]]:
    """Returns the loss, and the loss with its gradients, in a pipeline, in parts or in one go."""
    loss = workload.loss
    # Where ZeRO divides the parameters, every micro-batch gathers them and there is no replica.
    replicas = ("data",) if zero < 3 and mesh.shape["data"] > 1 else ()
    if plan:
        assert isinstance(loss, Stages)
        parts = pipeline.Parts(
            enter=lambda rest, batch: loss.enter(module(rest), batch),
            body=lambda layers, rest, stream, batch: loss.body(
                module({**rest, loss.stack: layers}), stream, batch
            ),
            exit=lambda rest, stream, batch: weighted.checked(
                loss.exit(module(rest), stream, batch)
            ),
        )
        dealt = plan, parts, weigh, loss.stack, replicas
        return pipeline.value(*dealt), pipeline.value_and_grad(*dealt)

    def whole(params: Tree, batch: Batch) -> Loss:
        return weighted.checked(loss(module(params), batch))

    if micro_batches == 1:
        return whole, jax.value_and_grad(lambda *arguments: weighted.mean(whole(*arguments)))
    place = functools.partial(constrain_to, specs=gradients)
    return (
        accumulate.value(whole, weigh, micro_batches, replicas),
        accumulate.value_and_grad(whole, weigh, micro_batches, replicas, place),
    )


def weight_of(
    workload: Workload, module: Callable[[Tree], nnx.Module], params: Tree
) -> accumulate.Weigh | None:
    """Returns what computes the weight of a batch without its loss; None where it is a plain mean.

    Args:
        workload: whose loss it is.
        module: makes the module of parameters.
        params: shapes of the parameters.

    Raises:
        InputError: the loss is neither a scalar nor `Weighted`, or its weight does not follow from
            the batch alone.
    """

    def weigh(batch: Batch) -> Any:
        return weighted.weight_alone(*_last_part(workload, module, params, batch), batch)

    weighted_loss = jax.eval_shape(weigh, dict(workload.batch)) is not None
    return weigh if weighted_loss else None


def _last_part(
    workload: Workload, module: Callable[[Tree], nnx.Module], params: Tree, batch: Batch
) -> tuple[Callable[..., Any], tuple[Tree, ...]]:
    """Returns the function that ends in the loss, and what it takes before the batch."""
    loss = workload.loss
    if not isinstance(loss, Stages):
        return lambda p, b: loss(module(p), b), (params,)
    enter, end = loss.enter, loss.exit
    stream = jax.eval_shape(lambda p, b: enter(module(p), b), params, batch)
    return lambda p, x, b: end(module(p), x, b), (params, stream)


def _check_is_a_mean(
    workload: Workload, module: Callable[[Tree], nnx.Module], params: Tree
) -> None:
    """Checks that a plain loss may be computed in micro-batches, whose mean is then taken."""
    batch = dict(workload.batch)
    if ratios.divides_by_the_batch(*_last_part(workload, module, params, batch), batch):
        raise InputError(
            "loss",
            "it divides by a number that it computes from the batch, such as the sum of a mask, "
            "so its mean over micro-batches is another loss",
            "return exajax.weighted_mean(values, weights) or exajax.Weighted(total, weight), or "
            "use one micro-batch and no pipeline",
        )


def _check_divides(workload: Workload, mesh: Mesh, micro_batches: int) -> None:
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
    """Returns the `learning_rate` of an update, or nothing where it is not known.

    An update that is skipped does not move a schedule on, so its place is read from the optimizer's
    state before the update; `state.step` stands in where it keeps none. `inject_hyperparams` has
    the rate itself in its state `after` the update.
    """
    if workload.learning_rate is None:
        found = optax.tree.get_all_with_path(after, "learning_rate")
        rates = [leaf for _, leaf in found if isinstance(leaf, jax.Array) and not leaf.shape]
        return {"learning_rate": jnp.asarray(rates[0], jnp.float32)} if len(rates) == 1 else {}
    is_place = lambda leaf: isinstance(leaf, optax.ScaleByScheduleState)  # noqa: E731
    leaves = jax.tree.leaves(state.optimizer, is_leaf=is_place)
    places = [leaf.count for leaf in leaves if is_place(leaf)]
    place = places[0] if len(places) == 1 else state.step
    return {"learning_rate": jnp.asarray(workload.learning_rate(place), jnp.float32)}


def local_bytes(tree: Tree) -> int:
    """Returns the bytes of a tree of described arrays on one device."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )


def _moment_sharding(moment: Any, sharding: NamedSharding, param: jax.ShapeDtypeStruct) -> Any:
    """Returns where a moment lies: as its parameter, less the axes that it is a mean over.

    A mean has size 1 there, or lost the axis (`optax.adafactor`); anything else is replicated. A
    parameter that an optimizer leaves to another one has no moment in it.
    """
    if isinstance(moment, optax.MaskedNode):
        return moment
    spec = (*sharding.spec, *[None] * (len(param.shape) - len(sharding.spec)))
    if len(moment.shape) == len(param.shape):
        pairs = zip(moment.shape, param.shape, spec, strict=True)
        kept = [entry if size == full else None for size, full, entry in pairs]
        return NamedSharding(sharding.mesh, PartitionSpec(*kept))
    for lost in range(len(param.shape)):
        if moment.shape == (*param.shape[:lost], *param.shape[lost + 1 :]):
            return NamedSharding(sharding.mesh, PartitionSpec(*spec[:lost], *spec[lost + 1 :]))
    return NamedSharding(sharding.mesh, PartitionSpec())


def _batch_names(leaf: jax.ShapeDtypeStruct) -> tuple[str | None, ...]:
    return ("batch", *[None] * (len(leaf.shape) - 1))
