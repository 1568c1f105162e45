"""Lays a program out in time: streams of compute, of collectives and of copies, as scheduled."""

import copy
import math
from dataclasses import dataclass, field

from exajax.machine.cluster import Cluster
from exajax.program.operations import Operation, Program, ProgramLoop
from exajax.simulate.collectives.pricing import collective_time_s
from exajax.simulate.kernels import KernelPrice, price

OVERLAP_SLOWDOWN = {"cuda": 0.189, "cpu": 0.0}
"""How much longer compute takes while it overlaps with a collective, by platform: the average over
GPT and Llama on A100, H100, MI250 and MI210 (arXiv:2507.03114, abstract; 40% at most). Collectives
of XLA's CPU backend do not overlap with compute."""

PIPELINE = "pipeline"
"""Scope in which the slots of a pipeline are traced (`exajax.spmd.pipeline`)."""

HOST = "host"
"""The stream of copies to and from the memory of the host, and what waiting for them is called."""

KINDS = ("compute", "memory_bound", "optimizer", "other", "pipeline_bubble", "stragglers")


@dataclass
class Breakdown:
    """Where the seconds of a step go; every second is counted once.

    Attributes:
        compute: matrix products and attention.
        memory_bound: operations limited by memory bandwidth.
        optimizer: the update of the parameters.
        other: operations too small for their work to take longer than a launch, and the host that
            starts a step.
        pipeline_bubble: pipeline slots in which a stage has no micro-batch.
        stragglers: waiting for the slowest of all devices, and what the noise of the network adds
            to the median (`simulate.variability`).
        exposed_communication: collectives that nothing overlaps with, by mesh axes; copies from the
            `host`.
        hidden_communication: collectives that overlap with compute. Not a part of the step time.
        slowed: what compute loses to collectives that overlap with it. A part of the others.
    """

    compute: float = 0.0
    memory_bound: float = 0.0
    optimizer: float = 0.0
    other: float = 0.0
    pipeline_bubble: float = 0.0
    stragglers: float = 0.0
    exposed_communication: dict[str, float] = field(default_factory=dict)
    hidden_communication: dict[str, float] = field(default_factory=dict)
    slowed: float = 0.0

    @property
    def total_s(self) -> float:
        """The step time."""
        return sum(getattr(self, kind) for kind in KINDS) + sum(self.exposed_communication.values())

    def add(self, before: "Breakdown", times: int) -> None:
        """Adds `times` over what has come since an earlier copy."""
        for name in (*KINDS, "slowed"):
            now = getattr(self, name)
            setattr(self, name, now + times * (now - getattr(before, name)))
        for name in ("exposed_communication", "hidden_communication"):
            into, earlier = getattr(self, name), getattr(before, name)
            for axes, seconds in into.items():
                into[axes] = seconds + times * (seconds - earlier.get(axes, 0.0))


@dataclass(frozen=True)
class Event:
    """Something that a device does or waits for.

    Attributes:
        op: the operation; for a wait, the collective that is waited for.
        stream: `compute`, `communication`, `host`, or `waiting` (the compute stream, idle).
        start_s: since the step began.
        lasts_s: how long.
    """

    op: Operation
    stream: str
    start_s: float
    lasts_s: float


def lay_out(program: Program, cluster: Cluster, bubble: float = 0.0) -> Breakdown:
    """Where the time of one step goes.

    The compute stream runs the schedule in order. A collective starts when its start is reached
    and the communication stream is free; its done waits until it has ended. While one runs,
    compute is slower by `OVERLAP_SLOWDOWN`.

    Args:
        program: what one device does.
        cluster: where.
        bubble: share of the slots of a pipeline in which a stage has no micro-batch; it computes
            on, and throws away what it gets.

    Raises:
        ValueError: a collective is started and never waited for.
    """
    device = _Device(cluster, bubble)
    device.run(program)
    device.spent.other += cluster.software.step_s
    return device.spent


def events(program: Program, cluster: Cluster) -> list[Event]:
    """Returns all that a device does in a step, every trip of every loop, in order of time."""
    device = _Device(cluster, 0.0, record=True)
    device.run(program)
    return sorted(device.events, key=lambda event: event.start_s)


class _Device:
    """One device, its two streams, and where its time has gone."""

    def __init__(self, cluster: Cluster, bubble: float, record: bool = False) -> None:
        self.cluster, self.bubble, self.record = cluster, bubble, record
        self.slowdown = 1 + OVERLAP_SLOWDOWN[cluster.chip.platform]
        self.clock_s = 0.0
        self.busy_until_s = {"communication": 0.0, HOST: 0.0}
        self.spent = Breakdown()
        self.events: list[Event] = []
        self._prices: dict[int, KernelPrice] = {}

    def run(self, program: Program, in_pipeline: bool = False) -> None:
        running: dict[str, tuple[float, float, Operation]] = {}  # start -> ends, lasts, what
        for node in program:
            idle = self.bubble if in_pipeline or f"/{PIPELINE}/" in node.op_name else 0.0
            if isinstance(node, ProgramLoop):
                self._loop(node, idle > 0)
            elif node.collective or node.kind.startswith("host-copy"):
                if not node.kind.endswith("-done"):
                    running[node.name] = self._send(node)
                if not node.kind.endswith("-start"):
                    self._wait(*running.pop(node.start or node.name), idle)
            elif node.kind == "collective-done":
                self._wait(*running.pop(node.start), idle)
            else:
                self._compute(node, idle)
        if running:
            raise ValueError(f"what nothing waits for: {', '.join(running)}")

    def _loop(self, loop: ProgramLoop, in_pipeline: bool) -> None:
        """Runs trips until one leaves the streams as the trip before did; the rest are like it."""
        backlog_s: dict[str, float] = {}
        for trip in range(loop.trips):
            before, began_s = copy.deepcopy(self.spent), self.clock_s
            self.run(loop.body, in_pipeline)
            left_s = {s: max(0.0, end_s - self.clock_s) for s, end_s in self.busy_until_s.items()}
            if not self.record and all(
                math.isclose(left_s[s], backlog_s.get(s, math.nan), rel_tol=1e-9, abs_tol=1e-12)
                for s in left_s
            ):
                more = loop.trips - trip - 1
                self.spent.add(before, more)
                self.clock_s += more * (self.clock_s - began_s)
                self.busy_until_s = {s: self.clock_s + seconds for s, seconds in left_s.items()}
                return
            backlog_s = left_s

    def _send(self, op: Operation) -> tuple[float, float, Operation]:
        """Starts a collective, or a copy to or from the host; returns its end and its time."""
        if op.collective:
            stream, lasts_s = "communication", collective_time_s(op.collective, self.cluster)
        else:
            stream, lasts_s = HOST, op.bytes / self.cluster.chip.host_bandwidth
        starts_s = max(self.clock_s, self.busy_until_s[stream])
        self.busy_until_s[stream] = starts_s + lasts_s
        self._note(op, stream, starts_s, lasts_s)
        return self.busy_until_s[stream], lasts_s, op

    def _wait(self, ends_s: float, lasts_s: float, op: Operation, idle: float) -> None:
        axes = op.collective.axes if op.collective else HOST
        exposed_s = max(0.0, ends_s - self.clock_s)
        if exposed_s:
            self._note(op, "waiting", self.clock_s, exposed_s)
        for where, seconds in (
            (self.spent.exposed_communication, exposed_s * (1 - idle)),
            (self.spent.hidden_communication, max(0.0, lasts_s - exposed_s)),
        ):
            where[axes] = where.get(axes, 0.0) + seconds
        self.spent.pipeline_bubble += exposed_s * idle
        self.clock_s += exposed_s

    def _compute(self, op: Operation, idle: float) -> None:
        priced = self._price(op)
        alone_s = priced.seconds * self.cluster.software.factor(op.kind)
        beside_s = max(0.0, self.busy_until_s["communication"] - self.clock_s)
        if alone_s * self.slowdown <= beside_s:
            lasts_s = alone_s * self.slowdown
        else:  # the last part runs alone
            lasts_s = alone_s + beside_s * (1 - 1 / self.slowdown)
        self._note(op, "compute", self.clock_s, lasts_s)
        self.clock_s += lasts_s
        kind = _kind(op, priced)
        setattr(self.spent, kind, getattr(self.spent, kind) + lasts_s * (1 - idle))
        self.spent.pipeline_bubble += lasts_s * idle
        self.spent.slowed += lasts_s - alone_s

    def _price(self, op: Operation) -> KernelPrice:
        if id(op) not in self._prices:  # the same in every trip of its loops
            self._prices[id(op)] = price(op, self.cluster.chip)
        return self._prices[id(op)]

    def _note(self, op: Operation, stream: str, start_s: float, lasts_s: float) -> None:
        if self.record:
            self.events.append(Event(op, stream, start_s, lasts_s))


def _kind(op: Operation, priced: KernelPrice) -> str:
    if "/optimizer/" in op.op_name:
        return "optimizer"
    if priced.bound == "launch":
        return "other"
    return "compute" if op.flops else "memory_bound"
