"""Pipeline parallelism: one program that runs any schedule over the `pipe` axis of the mesh.

The layers are divided over the devices of `pipe`, and micro-batches flow through them. Every device
runs the same program: a forward slot, a backward slot, or both at a time. What a stage computes in
a slot without an item is discarded; such a slot takes the time that a bubble would.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from exajax.spmd import residuals
from exajax.spmd.accumulate import (
    Weigh,
    mean_over_parts,
    share_of_loss,
    split_micro_batches,
    zero_loss,
)
from exajax.spmd.pipeline_schedule import Schedule
from exajax.spmd.sharding import axis_size, manual
from exajax.spmd.weighted import Loss, add_extra
from exajax.spmd.workload import Tree


@dataclass(frozen=True)
class LossParts:
    """A loss in three functions of parameter trees, for a pipeline.

    Attributes:
        enter: `enter(rest, batch)` returns the stream that enters the first layer.
        body: `body(layers, rest, stream, batch)` returns the stream and the layers' extra loss.
        exit: `exit(rest, stream, batch)` returns the loss; a scalar where gradients are computed.
    """

    enter: Callable[[Tree, Tree], jax.Array]
    body: Callable[[Tree, Tree, jax.Array, Tree], tuple[jax.Array, jax.Array]]
    exit: Callable[[Tree, jax.Array, Tree], Loss]


def value_and_grad(
    schedule: Schedule, parts: LossParts, weigh: Weigh | None, stack: str, replicas: tuple[str, ...]
) -> Callable[[Tree, Tree], tuple[jax.Array, Tree]]:
    """A function of (params, batch) that returns the loss and its gradients, in fp32.

    Args:
        schedule: the pipeline schedule.
        parts: the loss.
        weigh: weight of a batch, for a weighted loss; every stage first sums the weights of the
            whole batch. None for a plain mean.
        stack: key of the parameters that are divided over the stages; all stages have the others.
        replicas: mesh axes whose devices have equal parameters.
    """

    def run(layers: Tree, rest: Tree, batch: Tree) -> tuple[jax.Array, Tree, Tree]:
        batches = split_micro_batches(batch, schedule.micro_batches)
        share = share_of_loss(parts.exit, weigh, batches, schedule.micro_batches, replicas)
        stage = _Stage(schedule, replace(parts, exit=share), layers, rest, batches)
        loss, d_layers, d_rest = stage.train()
        # Only the first and the last stage have gradients of `rest`.
        loss, d_rest = jax.lax.psum((loss, d_rest), "pipe")
        return mean_over_parts((loss, d_layers, d_rest), schedule.micro_batches, replicas)

    mapped = _on_every_stage(
        run, schedule, replicas, lambda divided, replicated: (replicated, divided, replicated)
    )

    def gradients(params: Mapping[str, Tree], batch: Tree) -> tuple[jax.Array, Tree]:
        rest = {name: tree for name, tree in params.items() if name != stack}
        loss, d_layers, d_rest = mapped(params[stack], rest, batch)
        return loss, {**d_rest, stack: d_layers}

    return gradients


def value(
    schedule: Schedule, parts: LossParts, weigh: Weigh | None, stack: str, replicas: tuple[str, ...]
) -> Callable[[Tree, Tree], Loss]:
    """A function of (params, batch) that returns the loss; arguments as for `value_and_grad`."""

    def run(layers: Tree, rest: Tree, batch: Tree) -> Loss:
        batches = split_micro_batches(batch, schedule.micro_batches)
        stage = _Stage(schedule, parts, layers, rest, batches)
        loss = jax.lax.psum(stage.evaluate(zero_loss(weigh)), "pipe")
        return mean_over_parts(loss, schedule.micro_batches, replicas)

    mapped = _on_every_stage(run, schedule, replicas, lambda divided, replicated: replicated)

    def loss(params: Mapping[str, Tree], batch: Tree) -> Loss:
        rest = {name: tree for name, tree in params.items() if name != stack}
        return mapped(params[stack], rest, batch)

    return loss


def _on_every_stage(
    run: Callable[..., Any],
    schedule: Schedule,
    replicas: tuple[str, ...],
    out_specs: Callable[[PartitionSpec, PartitionSpec], Any],
) -> Callable[..., Any]:
    """A function of (layers, rest, batch), mapped over the stages and the replicas."""
    replicated = PartitionSpec()
    divided = PartitionSpec("pipe") if schedule.parts == 1 else PartitionSpec(None, "pipe")
    in_specs = divided, replicated, PartitionSpec(replicas or None)

    def mapped(*arguments: Any) -> Any:
        # `manual` reads the mesh in use, which is known only when this is called.
        specs = out_specs(divided, replicated)
        return manual(run, ("pipe", *replicas), in_specs, specs)(*arguments)

    return mapped


class _Carry(NamedTuple):
    """What one time slot of a stage passes on to the next.

    Attributes:
        forward: stream received from the stage before.
        backward: gradient of the stream, received from the stage behind.
        saved: residuals of the items in flight, each with a first axis of buffers.
        layers: sum of the gradients of this stage's layers, fp32.
        loss: sum of the loss.
        rest: sum of the gradients of the other parameters, fp32.
    """

    forward: jax.Array
    backward: jax.Array
    saved: Tree
    layers: Tree
    loss: jax.Array
    rest: Tree


class _Stage:
    """The program of one pipeline stage; its methods run while the program is traced.

    Residuals of a forward slot are saved for the backward slot of the same item, in `buffers`
    buffers. Residuals that are parameters are not saved, but passed in again.
    """

    def __init__(
        self, schedule: Schedule, parts: LossParts, layers: Tree, rest: Tree, batches: Tree
    ) -> None:
        self.schedule, self.parts = schedule, parts
        self.layers, self.rest, self.batches = layers, rest, batches
        self.stage = jax.lax.axis_index("pipe")
        self.stream = jax.eval_shape(parts.enter, rest, self._batch(0))
        self.buffers = schedule.in_flight

    def train(self) -> tuple[jax.Array, Tree, Tree]:
        """This stage's part of the summed loss, of the layers' and of the rest's gradients."""
        schedule = self.schedule
        saved = jax.eval_shape(self._forward, self._part(0), self._zeros(self.stream), 0)
        carry = _Carry(
            forward=self._zeros(self.stream),
            backward=self._zeros(self.stream),
            saved=jax.tree.map(lambda x: jnp.zeros((self.buffers, *x.shape), x.dtype), saved[1:]),
            layers=jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), self.layers),
            loss=jnp.zeros(()),
            rest=jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), self.rest),
        )
        lead, slots = schedule.lead, schedule.slots

        def alternate(carry: _Carry, slot: jax.Array) -> tuple[_Carry, None]:
            return self._backward_slot(self._forward_slot(carry, slot), slot - lead + 1), None

        def forward(carry: _Carry, slot: jax.Array) -> tuple[_Carry, None]:
            return self._forward_slot(carry, slot), None

        def backward(carry: _Carry, slot: jax.Array) -> tuple[_Carry, None]:
            return self._backward_slot(carry, slot), None

        with jax.named_scope("pipeline"):
            carry, _ = jax.lax.scan(forward, carry, jnp.arange(lead - 1))
            carry, _ = jax.lax.scan(alternate, carry, jnp.arange(lead - 1, slots))
            carry, _ = jax.lax.scan(backward, carry, jnp.arange(slots - lead + 1, slots))
        return carry.loss, carry.layers, carry.rest

    def evaluate(self, zero: Loss) -> Loss:
        """This stage's part of the summed loss, of the same kind as `zero`."""

        def step(carry: Tree, slot: jax.Array) -> tuple[Tree, None]:
            stream, loss = carry
            micro_batch, part, _, valid = self._item(slot - self.stage, forward=True)
            batch = self._batch(micro_batch)
            stream = self._stage_input(stream, batch, part)
            stream, extra = self.parts.body(self._part(part), self.rest, stream, batch)
            item_loss = jax.lax.cond(
                valid & self._is_last(part),
                lambda: self.parts.exit(self.rest, stream, batch),
                lambda: zero,
            )
            loss = jax.tree.map(jnp.add, loss, add_extra(item_loss, jnp.where(valid, extra, 0.0)))
            return (self._send(stream, 1), loss), None

        start = self._zeros(self.stream), zero
        return jax.lax.scan(step, start, jnp.arange(self.schedule.slots))[0][1]

    def _forward_slot(self, carry: _Carry, slot: jax.Array) -> _Carry:
        micro_batch, part, index, valid = self._item(slot - self.stage, forward=True)
        stream = self._stage_input(carry.forward, self._batch(micro_batch), part)
        extra, *saved = self._forward(self._part(part), stream, micro_batch)
        # Without an item, the index is out of bounds, which `mode="drop"` does not write.
        buffer = jnp.where(valid, index % self.buffers, self.buffers)
        return carry._replace(
            forward=self._send(saved[0], 1),
            loss=carry.loss + jnp.where(valid, extra, 0.0),
            saved=jax.tree.map(
                lambda buffers, x: buffers.at[buffer].set(x, mode="drop"), carry.saved, saved
            ),
        )

    def _forward(self, layers: Tree, stream: jax.Array, micro_batch: Any) -> list[Any]:
        """The extra loss of a chunk of layers, the stream after it, and the residuals to save."""
        batch = self._batch(micro_batch)

        def body(layers: Tree, stream: jax.Array) -> tuple[jax.Array, jax.Array]:
            return self.parts.body(layers, self.rest, stream, batch)

        (stream, extra), pullback = jax.vjp(body, layers, stream)
        saved, self._pullback = residuals.split(pullback, (layers, self.rest))
        return [extra, stream, *saved]

    def _backward_slot(self, carry: _Carry, slot: jax.Array) -> _Carry:
        reverse_stage = self.schedule.stages - 1 - self.stage
        micro_batch, part, index, valid = self._item(slot - reverse_stage, forward=False)
        batch, layers = self._batch(micro_batch), self._part(part)
        stream, *saved = jax.tree.map(lambda x: x[index % self.buffers], carry.saved)
        d_stream, d_rest, loss = self._output_gradient(
            carry, stream, batch, valid & self._is_last(part)
        )

        pullback = residuals.joined(self._pullback, saved, (layers, self.rest))
        d_layers, d_stream = pullback((d_stream, jnp.ones(())))
        return carry._replace(
            backward=self._send(d_stream, -1),
            loss=loss,
            layers=self._add(carry.layers, d_layers, part, valid),
            rest=self._enter_gradient(d_rest, d_stream, batch, valid & self._is_first(part)),
        )

    def _stage_input(self, received: jax.Array, batch: Tree, part: Any) -> jax.Array:
        """The stream into this stage: from the batch on the first one, else as received."""
        return jax.lax.cond(
            self._is_first(part), lambda: self.parts.enter(self.rest, batch), lambda: received
        )

    def _output_gradient(
        self, carry: _Carry, stream: jax.Array, batch: Tree, last: jax.Array
    ) -> tuple[jax.Array, Tree, jax.Array]:
        """The gradient of this stage's output: of the loss on the last one, else as received.

        Returns:
            The gradient of the stream, and the sums of the gradient of `rest` and of the loss.
        """

        def from_loss() -> tuple[jax.Array, Tree, jax.Array]:
            grad = jax.value_and_grad(self.parts.exit, argnums=(0, 1))
            loss, (d_rest, d_stream) = grad(self.rest, stream, batch)
            return d_stream, _add_trees(carry.rest, d_rest), carry.loss + loss

        return jax.lax.cond(last, from_loss, lambda: (carry.backward, carry.rest, carry.loss))

    def _enter_gradient(self, d_rest: Tree, d_stream: jax.Array, batch: Tree, first: Any) -> Tree:
        """The sum of the gradient of `rest`, with that of `enter` added on the first stage."""

        def from_stream() -> Tree:
            _, pullback = jax.vjp(lambda rest: self.parts.enter(rest, batch), self.rest)
            return _add_trees(d_rest, pullback(d_stream)[0])

        return jax.lax.cond(first, from_stream, lambda: d_rest)

    def _add(self, totals: Tree, gradients: Tree, part: Any, valid: jax.Array) -> Tree:
        def add(total: jax.Array, gradient: jax.Array) -> jax.Array:
            gradient = jnp.where(valid, gradient, 0).astype(total.dtype)
            if self.schedule.parts == 1:
                return total + gradient
            return total.at[part].add(gradient[0])

        return jax.tree.map(add, totals, gradients)

    def _item(self, index: jax.Array, *, forward: bool) -> tuple[Any, Any, Any, jax.Array]:
        """Micro-batch, chunk and forward index of an item, and whether there is such an item."""
        items = self.schedule.micro_batches * self.schedule.parts
        clipped = jnp.clip(index, 0, items - 1)
        return *self.schedule.item(clipped, forward=forward), clipped == index

    def _batch(self, micro_batch: Any) -> Tree:
        return jax.tree.map(lambda x: x[micro_batch], self.batches)

    def _part(self, part: Any) -> Tree:
        if self.schedule.parts == 1:
            return self.layers
        return jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, part, 1, axis=0), self.layers)

    def _is_first(self, part: Any) -> jax.Array:
        return (self.stage == 0) & (part == 0)

    def _is_last(self, part: Any) -> jax.Array:
        return (self.stage == self.schedule.stages - 1) & (part == self.schedule.parts - 1)

    def _send(self, x: jax.Array, distance: int) -> jax.Array:
        """Sends an array to the stage at a distance of 1 or -1, and receives one from the other."""
        ways = axis_size("pipe")
        return jax.lax.ppermute(x, "pipe", [(i, (i + distance) % ways) for i in range(ways)])

    @staticmethod
    def _zeros(shape: Any) -> jax.Array:
        return jnp.zeros(shape.shape, shape.dtype)


def _add_trees(total: Tree, increment: Tree) -> Tree:
    return jax.tree.map(lambda t, x: t + x.astype(t.dtype), total, increment)
