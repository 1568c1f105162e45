"""The loss of a global batch and its gradients, in one pass, in micro-batches or in a pipeline."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
from flax import nnx
from jax.sharding import Mesh

from exajax.errors import InputError
from exajax.spmd import accumulate, batch_division, pipeline, weighted
from exajax.spmd.accumulate import Weigh
from exajax.spmd.pipeline_schedule import Schedule
from exajax.spmd.sharding import constrain_to
from exajax.spmd.weighted import Loss
from exajax.spmd.workload import Batch, Stages, Tree, Workload

ToModule = Callable[[Tree], nnx.Module]
"""Function that makes the module of parameters."""

LossFunction = Callable[[Tree, Batch], Loss]
GradientFunction = Callable[[Tree, Batch], tuple[jax.Array, Tree]]


@dataclass(frozen=True)
class BatchPlan:
    """How a global batch is divided in time and over replicas.

    Attributes:
        micro_batches: parts that are processed one after the other, or flow through the pipeline.
        replicas: mesh axes whose devices have equal parameters, and sum gradients on their own.
        schedule: the pipeline schedule, None without a pipeline.
    """

    micro_batches: int
    replicas: tuple[str, ...]
    schedule: Schedule | None


def replica_axes(mesh: Mesh, zero: int) -> tuple[str, ...]:
    """Mesh axes whose devices have equal parameters at a ZeRO level.

    At level 3 there are none, since every micro-batch gathers the parameters.
    """
    return ("data",) if zero < 3 and mesh.shape["data"] > 1 else ()


def loss_functions(
    workload: Workload,
    module: ToModule,
    weigh: Weigh | None,
    gradient_shardings: Tree,
    plan: BatchPlan,
) -> tuple[LossFunction, GradientFunction]:
    """Functions of (params, batch) for the loss, and for the loss with its gradients.

    Args:
        workload: the workload.
        module: makes its module of parameters.
        weigh: weight of a batch, for a weighted loss; None for a plain mean.
        gradient_shardings: sharding of each gradient.
        plan: how the batch is divided.
    """
    loss = workload.loss
    if plan.schedule:
        assert isinstance(loss, Stages)
        parts = pipeline.LossParts(
            enter=lambda rest, batch: loss.enter(module(rest), batch),
            body=lambda layers, rest, stream, batch: loss.body(
                module({**rest, loss.stack: layers}), stream, batch
            ),
            exit=lambda rest, stream, batch: weighted.as_loss(
                loss.exit(module(rest), stream, batch)
            ),
        )
        arguments = plan.schedule, parts, weigh, loss.stack, plan.replicas
        return pipeline.value(*arguments), pipeline.value_and_grad(*arguments)

    def whole(params: Tree, batch: Batch) -> Loss:
        return weighted.as_loss(loss(module(params), batch))

    if plan.micro_batches == 1:
        return whole, jax.value_and_grad(lambda *arguments: weighted.mean_loss(whole(*arguments)))
    place = functools.partial(constrain_to, specs=gradient_shardings)
    return (
        accumulate.value(whole, weigh, plan.micro_batches, plan.replicas),
        accumulate.value_and_grad(whole, weigh, plan.micro_batches, plan.replicas, place),
    )


def weight_function(workload: Workload, module: ToModule, params: Tree) -> Weigh | None:
    """A function of a batch for the weight of its loss; None if the loss is a plain mean.

    Args:
        workload: the workload.
        module: makes its module of parameters.
        params: shapes of the parameters.

    Raises:
        InputError: the loss is neither a scalar nor `Weighted`, or its weight does not depend on
            the batch alone.
    """

    def weigh(batch: Batch) -> Any:
        return weighted.weight_without_loss(*_exit(workload, module, params, batch), batch)

    is_weighted = jax.eval_shape(weigh, dict(workload.batch)) is not None
    return weigh if is_weighted else None


def check_is_a_mean(workload: Workload, module: ToModule, params: Tree) -> None:
    """Raises an `InputError` if a plain loss must not be averaged over micro-batches.

    Args:
        workload: the workload.
        module: makes its module of parameters.
        params: shapes of the parameters.
    """
    batch = dict(workload.batch)
    if batch_division.divides_by_the_batch(*_exit(workload, module, params, batch), batch):
        raise InputError(
            "loss",
            "it divides by a number that it computes from the batch, such as the sum of a mask, "
            "so its mean over micro-batches is another loss",
            "return exajax.weighted_mean(values, weights) or exajax.Weighted(total, weight), or "
            "use one micro-batch and no pipeline",
        )


def _exit(
    workload: Workload, module: ToModule, params: Tree, batch: Batch
) -> tuple[Callable[..., Any], tuple[Tree, ...]]:
    """The function that returns the loss, and the shapes of its arguments before the batch."""
    loss = workload.loss
    if not isinstance(loss, Stages):
        return lambda p, b: loss(module(p), b), (params,)
    enter, exit_ = loss.enter, loss.exit
    stream = jax.eval_shape(lambda p, b: enter(module(p), b), params, batch)
    return lambda p, x, b: exit_(module(p), x, b), (params, stream)
