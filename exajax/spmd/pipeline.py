"""Pipeline parallelism: schedules as data, and one program that runs any of them.

Layers are dealt to the devices of `pipe`; micro-batches flow through. Every device runs the same
program: a turn forward, a turn backward, or both; what it computes before its first micro-batch
and behind its last is thrown away. Such a turn takes the time that a bubble would.

Symbols: P stages, V parts of a stage (interleaved; arXiv:2104.04473), M micro-batches.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from exajax.spmd.accumulate import Weigh, mean, nothing, shared, split
from exajax.spmd.sharding import axis_size, manual
from exajax.spmd.weighted import Loss, plus

Tree = Any
SCHEDULES = ("gpipe", "1f1b", "interleaved")


@dataclass(frozen=True)
class Schedule:
    """When each stage works on what.

    Forward turn t of stage s is for item t - s: micro-batches in groups of P, each group going
    through part 0 of all stages, then through part 1, and so on. Backward turn t of stage s is
    for item t - (P - 1 - s), the parts in reverse. Either way an item is at the next stage one
    turn later.

    Attributes:
        stages: P.
        parts: V.
        micro_batches: M, a multiple of P where V > 1.
        lead: forward turns before the first backward turn; then they alternate.
    """

    stages: int
    parts: int
    micro_batches: int
    lead: int

    @classmethod
    def of(cls, name: str, stages: int, parts: int, micro_batches: int) -> "Schedule":
        """Returns a schedule of `SCHEDULES` by name.

        `gpipe` goes all the way forward first (arXiv:1811.06965); the others begin with the
        backward pass as soon as the first micro-batch is through (arXiv:1806.03377), which bounds
        what is kept by the stages and not by the micro-batches: 2P - 1 of them. Stages that each
        take turns of their own keep P; here all go forward, and then all backward.
        """
        turns = micro_batches * parts + stages - 1
        lead = turns if name == "gpipe" else min(turns, stages * parts)
        return cls(stages, parts, micro_batches, lead)

    @property
    def turns(self) -> int:
        """Turns of one direction."""
        return self.micro_batches * self.parts + self.stages - 1

    @property
    def bubble(self) -> float:
        """Share of the turns in which a stage has nothing to do."""
        return (self.stages - 1) / self.turns

    @property
    def in_flight(self) -> int:
        """Most items whose activations a stage keeps at once."""
        items = self.micro_batches * self.parts
        most = 1
        for stage in range(self.stages):
            kept: set[int] = set()
            for turn in range(self.turns):
                if turn >= stage and turn - stage < items:
                    kept.add(turn - stage)
                # Places are taken in turn, so what counts is the distance of oldest and newest.
                most = max(most, max(kept, default=0) - min(kept, default=0) + 1)
                ended = turn - self.lead + 1 - (self.stages - 1 - stage)
                if 0 <= ended < items:
                    kept.discard(self.item(ended, forward=False)[2])
        return most

    def item(self, index: Any, *, forward: bool) -> tuple[Any, Any, Any]:
        """Returns micro-batch, part, and place in the forward order, of an item of one direction.

        Args:
            index: place in the order of that direction, a number or an array.
            forward: which direction.
        """
        if self.parts == 1:
            return index, 0 * index, index
        group, within = divmod(index, self.stages * self.parts)
        part, member = divmod(within, self.stages)
        if not forward:
            part = self.parts - 1 - part
        micro = group * self.stages + member
        return micro, part, self.item_place(micro, part)

    def item_place(self, micro: Any, part: Any) -> Any:
        """Returns the place in the forward order of a micro-batch in a part of the stages."""
        if self.parts == 1:
            return micro
        group, member = divmod(micro, self.stages)
        return (group * self.parts + part) * self.stages + member


@dataclass(frozen=True)
class Parts:
    """A loss in pieces, over trees of parameters.

    Attributes:
        enter: (rest, batch) to the stream.
        body: (layers, rest, stream, batch) to (stream, loss).
        exit: (rest, stream, batch) to the loss; where gradients are computed, to a scalar.
    """

    enter: Callable[[Tree, Tree], jax.Array]
    body: Callable[[Tree, Tree, jax.Array, Tree], tuple[jax.Array, jax.Array]]
    exit: Callable[[Tree, jax.Array, Tree], Loss]


def value_and_grad(
    schedule: Schedule, parts: Parts, weigh: Weigh | None, stack: str, replicas: tuple[str, ...]
) -> Callable[[Tree, Tree], tuple[jax.Array, Tree]]:
    """Returns a function of (params, batch) to the loss and its gradients, in fp32.

    Args:
        schedule: when each stage works on what.
        parts: the loss.
        weigh: of a weighted loss; every stage sums the weights of the whole batch first.
        stack: the parameters that are dealt to the stages; the rest every stage has.
        replicas: mesh axes whose devices hold equal parameters.
    """

    def run(layers: Tree, rest: Tree, batch: Tree) -> tuple[jax.Array, Tree, Tree]:
        batches = split(batch, schedule.micro_batches)
        portion = shared(parts.exit, weigh, batches, schedule.micro_batches, replicas)
        machine = _Machine(schedule, replace(parts, exit=portion), layers, rest, batches)
        loss, d_layers, d_rest = machine.train()
        # Only the first and the last stage have worked with the rest.
        loss, d_rest = jax.lax.psum((loss, d_rest), "pipe")
        return mean((loss, d_layers, d_rest), schedule.micro_batches, replicas)

    mapped = _mapped(run, schedule, replicas, lambda dealt, whole: (whole, dealt, whole))

    def gradients(params: Mapping[str, Tree], batch: Tree) -> tuple[jax.Array, Tree]:
        rest = {name: tree for name, tree in params.items() if name != stack}
        loss, d_layers, d_rest = mapped(params[stack], rest, batch)
        return loss, {**d_rest, stack: d_layers}

    return gradients


def value(
    schedule: Schedule, parts: Parts, weigh: Weigh | None, stack: str, replicas: tuple[str, ...]
) -> Callable[[Tree, Tree], Loss]:
    """Returns a function of (params, batch) to the loss, forward only."""

    def run(layers: Tree, rest: Tree, batch: Tree) -> Loss:
        machine = _Machine(schedule, parts, layers, rest, split(batch, schedule.micro_batches))
        loss = jax.lax.psum(machine.evaluate(nothing(weigh)), "pipe")
        return mean(loss, schedule.micro_batches, replicas)

    mapped = _mapped(run, schedule, replicas, lambda dealt, whole: whole)

    def loss(params: Mapping[str, Tree], batch: Tree) -> Loss:
        rest = {name: tree for name, tree in params.items() if name != stack}
        return mapped(params[stack], rest, batch)

    return loss


def _mapped(
    run: Callable[..., Any],
    schedule: Schedule,
    replicas: tuple[str, ...],
    out_specs: Callable[[PartitionSpec, PartitionSpec], Any],
) -> Callable[..., Any]:
    whole = PartitionSpec()
    dealt = PartitionSpec("pipe") if schedule.parts == 1 else PartitionSpec(None, "pipe")
    batch = PartitionSpec(replicas or None)
    in_specs = dealt, whole, batch
    # Looked up when it is called: only then is it known on which mesh.
    return lambda *arguments: manual(run, ("pipe", *replicas), in_specs, out_specs(dealt, whole))(
        *arguments
    )


class _Machine:
    """One stage at work. Every method runs while the program is traced.

    Residuals of the forward turns are kept until the backward turn, in `in_flight` places; those
    that are parameters are not kept but given again.
    """

    def __init__(
        self, schedule: Schedule, parts: Parts, layers: Tree, rest: Tree, batches: Tree
    ) -> None:
        self.schedule, self.parts = schedule, parts
        self.layers, self.rest, self.batches = layers, rest, batches
        self.stage = jax.lax.axis_index("pipe")
        self.stream = jax.eval_shape(parts.enter, rest, self._batch(0))
        self.depth = schedule.in_flight

    def train(self) -> tuple[jax.Array, Tree, Tree]:
        """Returns this stage's share of the summed loss, and of the summed gradients."""
        schedule = self.schedule
        kept = jax.eval_shape(self._forward, self._part(0), self._zeros(self.stream), 0)
        state = {
            "ahead": self._zeros(self.stream),
            "back": self._zeros(self.stream),
            "kept": jax.tree.map(lambda x: jnp.zeros((self.depth, *x.shape), x.dtype), kept[1:]),
            "loss": jnp.zeros(()),
            "layers": jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), self.layers),
            "rest": jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), self.rest),
        }
        lead, turns = schedule.lead, schedule.turns

        def alternate(state: Tree, turn: jax.Array) -> tuple[Tree, None]:
            return self._backward_turn(self._forward_turn(state, turn), turn - lead + 1), None

        def ahead(state: Tree, turn: jax.Array) -> tuple[Tree, None]:
            return self._forward_turn(state, turn), None

        def back(state: Tree, turn: jax.Array) -> tuple[Tree, None]:
            return self._backward_turn(state, turn), None

        with jax.named_scope("pipeline"):
            state, _ = jax.lax.scan(ahead, state, jnp.arange(lead - 1))
            state, _ = jax.lax.scan(alternate, state, jnp.arange(lead - 1, turns))
            state, _ = jax.lax.scan(back, state, jnp.arange(turns - lead + 1, turns))
        return state["loss"], state["layers"], state["rest"]

    def evaluate(self, nothing: Loss) -> Loss:
        """Returns this stage's share of the summed loss, which begins with `nothing`."""

        def turn(state: Tree, turn: jax.Array) -> tuple[Tree, None]:
            stream, loss = state
            micro, part, _, valid = self._item(turn - self.stage, forward=True)
            batch = self._batch(micro)
            stream = self._begin(stream, batch, part)
            stream, extra = self.parts.body(self._part(part), self.rest, stream, batch)
            ended = jax.lax.cond(
                valid & self._is_last(part),
                lambda: self.parts.exit(self.rest, stream, batch),
                lambda: nothing,
            )
            loss = jax.tree.map(jnp.add, loss, plus(ended, jnp.where(valid, extra, 0.0)))
            return (self._pass_on(stream, 1), loss), None

        start = self._zeros(self.stream), nothing
        return jax.lax.scan(turn, start, jnp.arange(self.schedule.turns))[0][1]

    def _forward_turn(self, state: Tree, turn: jax.Array) -> Tree:
        micro, part, place, valid = self._item(turn - self.stage, forward=True)
        stream = self._begin(state["ahead"], self._batch(micro), part)
        extra, *kept = self._forward(self._part(part), stream, micro)
        here = jnp.where(valid, place % self.depth, self.depth)
        return state | {
            "ahead": self._pass_on(kept[0], 1),
            "loss": state["loss"] + jnp.where(valid, extra, 0.0),
            "kept": jax.tree.map(
                lambda all_kept, x: all_kept.at[here].set(x, mode="drop"), state["kept"], kept
            ),
        }

    def _forward(self, layers: Tree, stream: jax.Array, micro: Any) -> list[Any]:
        """Returns the extra loss, the stream behind this part, and the residuals to keep."""
        batch = self._batch(micro)

        def body(layers: Tree, stream: jax.Array) -> tuple[jax.Array, jax.Array]:
            return self.parts.body(layers, self.rest, stream, batch)

        (stream, extra), pullback = jax.vjp(body, layers, stream)
        leaves, self._pullback = jax.tree.flatten(pullback)
        given = {id(leaf): i for i, leaf in enumerate(self._given(layers))}
        self._sources = [given.get(id(leaf)) for leaf in leaves]
        kept = [leaf for leaf in leaves if id(leaf) not in given]
        return [extra, stream, *kept]

    def _given(self, layers: Tree) -> list[Any]:
        return jax.tree.leaves((layers, self.rest))

    def _backward_turn(self, state: Tree, turn: jax.Array) -> Tree:
        index = turn - (self.schedule.stages - 1 - self.stage)
        micro, part, place, valid = self._item(index, forward=False)
        batch, layers = self._batch(micro), self._part(part)
        stream, *kept = jax.tree.map(lambda x: x[place % self.depth], state["kept"])
        d_stream, d_rest, loss = self._end(state, stream, batch, valid & self._is_last(part))

        given, saved = self._given(layers), iter(kept)
        leaves = [next(saved) if i is None else given[i] for i in self._sources]
        pullback = jax.tree.unflatten(self._pullback, leaves)
        d_layers, d_stream = pullback((d_stream, jnp.ones(())))
        return state | {
            "back": self._pass_on(d_stream, -1),
            "loss": loss,
            "layers": self._add(state["layers"], d_layers, part, valid),
            "rest": self._begin_back(d_rest, d_stream, batch, valid & self._is_first(part)),
        }

    def _begin(self, arrived: jax.Array, batch: Tree, part: Any) -> jax.Array:
        """Returns the stream that this stage starts from: what arrived, or the batch's own."""
        return jax.lax.cond(
            self._is_first(part), lambda: self.parts.enter(self.rest, batch), lambda: arrived
        )

    def _end(
        self, state: Tree, stream: jax.Array, batch: Tree, last: jax.Array
    ) -> tuple[jax.Array, Tree, jax.Array]:
        """Returns the gradient to start from: the loss's at the end, else what arrived."""

        def from_loss() -> tuple[jax.Array, Tree, jax.Array]:
            grad = jax.value_and_grad(self.parts.exit, argnums=(0, 1))
            loss, (d_rest, d_stream) = grad(self.rest, stream, batch)
            return d_stream, _plus(state["rest"], d_rest), state["loss"] + loss

        return jax.lax.cond(last, from_loss, lambda: (state["back"], state["rest"], state["loss"]))

    def _begin_back(self, d_rest: Tree, d_stream: jax.Array, batch: Tree, first: Any) -> Tree:
        def from_stream() -> Tree:
            _, pullback = jax.vjp(lambda rest: self.parts.enter(rest, batch), self.rest)
            return _plus(d_rest, pullback(d_stream)[0])

        return jax.lax.cond(first, from_stream, lambda: d_rest)

    def _add(self, totals: Tree, gradients: Tree, part: Any, valid: jax.Array) -> Tree:
        def add(total: jax.Array, gradient: jax.Array) -> jax.Array:
            gradient = jnp.where(valid, gradient, 0).astype(total.dtype)
            if self.schedule.parts == 1:
                return total + gradient
            return total.at[part].add(gradient[0])

        return jax.tree.map(add, totals, gradients)

    def _item(self, index: jax.Array, *, forward: bool) -> tuple[Any, Any, Any, jax.Array]:
        items = self.schedule.micro_batches * self.schedule.parts
        inside = jnp.clip(index, 0, items - 1)
        return *self.schedule.item(inside, forward=forward), inside == index

    def _batch(self, micro: Any) -> Tree:
        return jax.tree.map(lambda x: x[micro], self.batches)

    def _part(self, part: Any) -> Tree:
        if self.schedule.parts == 1:
            return self.layers
        return jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, part, 1, axis=0), self.layers)

    def _is_first(self, part: Any) -> jax.Array:
        return (self.stage == 0) & (part == 0)

    def _is_last(self, part: Any) -> jax.Array:
        return (self.stage == self.schedule.stages - 1) & (part == self.schedule.parts - 1)

    def _pass_on(self, x: jax.Array, direction: int) -> jax.Array:
        ways = axis_size("pipe")
        return jax.lax.ppermute(x, "pipe", [(i, (i + direction) % ways) for i in range(ways)])

    @staticmethod
    def _zeros(described: Any) -> jax.Array:
        return jnp.zeros(described.shape, described.dtype)


def _plus(total: Tree, more: Tree) -> Tree:
    return jax.tree.map(lambda t, m: t + m.astype(t.dtype), total, more)
