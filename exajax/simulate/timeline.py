"""Lays a program out in time: one compute stream, one communication stream, as scheduled."""

from dataclasses import dataclass, field

from exajax.cluster import Cluster
from exajax.program.operations import Loop, Operation, Program
from exajax.simulate.collectives import collective_time_s
from exajax.simulate.kernels import operation_time_s


@dataclass
class Breakdown:
    """Where the seconds of a step go; every second is counted once.

    Attributes:
        compute: matrix products and attention.
        memory_bound: operations that wait for memory.
        optimizer: the update of the parameters.
        other: operations too small to take longer than a launch.
        exposed_communication: waiting for collectives, by mesh axes.
        hidden_communication: collectives that ran beside compute. Not a part of the step time.
    """

    compute: float = 0.0
    memory_bound: float = 0.0
    optimizer: float = 0.0
    other: float = 0.0
    exposed_communication: dict[str, float] = field(default_factory=dict)
    hidden_communication: dict[str, float] = field(default_factory=dict)

    @property
    def total_s(self) -> float:
        """The step time."""
        return (
            self.compute
            + self.memory_bound
            + self.optimizer
            + self.other
            + sum(self.exposed_communication.values())
        )

    def add(self, part: "Breakdown", times: int) -> None:
        """Adds another breakdown `times` over."""
        for name in ("compute", "memory_bound", "optimizer", "other"):
            setattr(self, name, getattr(self, name) + times * getattr(part, name))
        for name in ("exposed_communication", "hidden_communication"):
            into = getattr(self, name)
            for axes, seconds in getattr(part, name).items():
                into[axes] = into.get(axes, 0.0) + times * seconds


def lay_out(program: Program, cluster: Cluster) -> Breakdown:
    """Returns where the time of one step goes.

    The compute stream runs the schedule in order. A collective starts when its start is reached
    and the communication stream is free; its done waits until it has ended.

    Raises:
        ValueError: a collective is started and never waited for.
    """
    return _lay_out(program, cluster, 0.0)[0]


def _lay_out(program: Program, cluster: Cluster, busy_s: float) -> tuple[Breakdown, float]:
    """Lays out a program while the communication stream is still busy for `busy_s`.

    Returns:
        Where the time goes, and how long the communication stream is still busy at its end.
    """
    spent = Breakdown()
    clock_s, stream_free_s = 0.0, busy_s
    running: dict[str, tuple[float, float, str]] = {}  # start -> ends, lasts, axes

    for node in program:
        if isinstance(node, Loop):
            # Only the first trip can find the stream busy with what was started before the loop.
            busy_s = max(0.0, stream_free_s - clock_s)
            for times in (1, node.trips - 1) if node.trips > 1 else (node.trips,):
                body, left_s = _lay_out(node.body, cluster, busy_s)
                spent.add(body, times)
                clock_s += body.total_s * times
                stream_free_s, busy_s = clock_s + left_s, left_s
        elif node.collective:
            lasts_s = collective_time_s(node.collective, cluster)
            stream_free_s = max(clock_s, stream_free_s) + lasts_s
            running[node.name] = stream_free_s, lasts_s, node.collective.axes
            if node.kind == "collective":
                clock_s = _wait(running.pop(node.name), clock_s, spent)
        elif node.kind == "collective-done":
            clock_s = _wait(running.pop(node.start), clock_s, spent)
        else:
            lasts_s = operation_time_s(node, cluster.chip)
            clock_s += lasts_s
            _count(node, lasts_s, cluster, spent)
    if running:
        raise ValueError(f"collectives that nothing waits for: {', '.join(running)}")
    return spent, max(0.0, stream_free_s - clock_s)


def _wait(collective: tuple[float, float, str], clock_s: float, spent: Breakdown) -> float:
    ends_s, lasts_s, axes = collective
    exposed_s = max(0.0, ends_s - clock_s)
    for where, seconds in (
        (spent.exposed_communication, exposed_s),
        (spent.hidden_communication, max(0.0, lasts_s - exposed_s)),
    ):
        where[axes] = where.get(axes, 0.0) + seconds
    return clock_s + exposed_s


def _count(op: Operation, seconds: float, cluster: Cluster, spent: Breakdown) -> None:
    if "/optimizer/" in op.op_name:
        spent.optimizer += seconds
    elif seconds <= cluster.chip.launch_s:
        spent.other += seconds
    elif op.flops:
        spent.compute += seconds
    else:
        spent.memory_bound += seconds
