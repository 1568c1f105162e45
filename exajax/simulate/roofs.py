"""Every operation of a simulated step against the roof of its chip, or its collective's line."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from exajax.machine.cluster import Cluster
from exajax.program.hlo_collectives import Collective
from exajax.program.labels import label
from exajax.program.operations import Operation
from exajax.simulate.kernels import PRECISIONS, price
from exajax.simulate.timeline import Event

PASSES = {"all-reduce": 2.0}
"""How often a ring moves the array; an all-reduce is a reduce-scatter and an all-gather."""

HOST = "host"
"""Name of the row for what starts a step."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """An operation of a simulated step, or a group of them, against the roof of its chip.

    Attributes:
        name: the operation; of a group, empty.
        op_name: the path of JAX names it comes from; of a group, empty.
        part: what it belongs to, a part of `program.labels`; of a collective, `communication`.
        direction: `forward`, `recompute`, `backward` or empty.
        kind: that of the operation, or `host`; of a collective, its mesh axes.
        bound: what its time depends on most: `compute`, `memory`, `launch` or `communication`.
        precision: the peak that its products are compared with, empty without products.
        count: times that a step runs it.
        flops: FLOPs of a step.
        bytes: bytes of a step, read and written; of a collective, sent over its slowest line.
        seconds: of a step, overlap included; of a collective, those that are exposed.
        busy_s: of a step, of a collective also those in which compute goes on; else `seconds`.
        roof_s: the least that `seconds` could be: max(FLOPs / peak, bytes / bandwidth); of a
            collective what would be exposed at line rate, if as much stayed hidden.
    """

    name: str = ""
    op_name: str = ""
    part: str
    direction: str
    kind: str
    bound: str
    precision: str
    count: int
    flops: float
    bytes: float
    seconds: float
    busy_s: float
    roof_s: float

    @property
    def lost_s(self) -> float:
        """Time lost against the roof."""
        return self.seconds - self.roof_s

    @property
    def exposed(self) -> bool:
        """Whether it is a collective, or a copy to or from the host, that compute waits for."""
        return self.bound == "communication"

    @property
    def intensity(self) -> float | None:
        """FLOPs for each byte; None of a collective, and of what moves no bytes."""
        return self.flops / self.bytes if self.bytes and not self.exposed else None

    @property
    def attained_flops_per_s(self) -> float | None:
        """FLOP/s that it reaches; None of a collective."""
        return None if self.exposed else _rate(self.flops, self.seconds)

    @property
    def attained_bytes_per_s(self) -> float | None:
        """Bytes a second that it reads and writes, or sends."""
        return _rate(self.bytes, self.busy_s)

    def to_json(self) -> dict[str, Any]:
        """The fields of an operation or a group, and what follows from them."""
        return {
            **({"name": self.name, "op_name": self.op_name} if self.name else {}),
            "part": self.part,
            "direction": self.direction,
            "kind": self.kind,
            "bound": self.bound,
            "precision": self.precision,
            "count": self.count,
            "flops": self.flops,
            "bytes": self.bytes,
            "intensity": self.intensity,
            "seconds": self.seconds,
            "busy_s": self.busy_s,
            "roof_s": self.roof_s,
            "lost_s": self.lost_s,
            "attained_flops_per_s": self.attained_flops_per_s,
            "attainable_flops_per_s": None if self.exposed else _rate(self.flops, self.roof_s),
            "attained_bytes_per_s": self.attained_bytes_per_s,
        }


def _rate(amount: float, seconds: float) -> float | None:
    return amount / seconds if seconds else None


def operations(events: Iterable[Event], cluster: Cluster) -> list[Row]:
    """Every operation of a simulated step against its roof, the one that loses most first.

    The seconds of all rows add up to the time of a step on devices that are all alike: compute, and
    exposed collectives.

    Args:
        events: all that a device does in the step (`timeline.events`).
        cluster: where.
    """
    ops: dict[str, Operation] = {}
    counts: dict[str, int] = {}
    spent: dict[str, dict[str, float]] = {}
    for event in events:
        name = event.op.name
        ops[name] = event.op
        by_stream = spent.setdefault(name, {})
        by_stream[event.stream] = by_stream.get(event.stream, 0.0) + event.lasts_s
        counts[name] = counts.get(name, 0) + (event.stream != "waiting")
    rows = [
        _communicated(op, counts[name], spent[name], cluster)
        if "compute" not in spent[name]
        else _computed(op, counts[name], spent[name]["compute"], cluster)
        for name, op in ops.items()
    ]
    if cluster.software.step_s:
        rows.append(_host(cluster.software.step_s))
    return sorted(rows, key=lambda row: (-row.lost_s, row.name))


def _computed(op: Operation, count: int, seconds: float, cluster: Cluster) -> Row:
    chip = cluster.chip
    where = label(op.op_name, op.kind)
    precision = PRECISIONS.get(op.dtype, "fp32") if op.flops else ""
    compute_s = op.flops / chip.peak(precision) if precision else 0.0
    return Row(
        name=op.name,
        op_name=op.op_name,
        part=where.part,
        direction=where.direction,
        kind=op.kind,
        bound=price(op, chip).bound,
        precision=precision,
        count=count,
        flops=op.flops * count,
        bytes=op.bytes * count,
        seconds=seconds,
        busy_s=seconds,
        roof_s=count * max(compute_s, op.bytes / chip.memory_bandwidth),
    )


def _host(seconds: float) -> Row:
    """What every step takes besides its operations, in which the device is idle for its host."""
    return Row(
        name=HOST,
        part="other",
        direction="",
        kind="host",
        bound="launch",
        precision="",
        count=1,
        flops=0.0,
        bytes=0.0,
        seconds=seconds,
        busy_s=seconds,
        roof_s=0.0,
    )


def _communicated(op: Operation, count: int, spent: Mapping[str, float], cluster: Cluster) -> Row:
    """The row of a collective, or of a copy to or from the host."""
    where = label(op.op_name, op.kind)
    exposed_s = spent.get("waiting", 0.0)
    busy_s = sum(seconds for stream, seconds in spent.items() if stream != "waiting")
    sent_bytes, line = (
        least_traffic(op.collective, cluster)
        if op.collective
        else (op.bytes, cluster.chip.host_bandwidth)
    )
    # A switch that reduces can be faster than any traffic between devices.
    line_s = min(busy_s, count * sent_bytes / line)
    return Row(
        name=op.name,
        op_name=op.op_name,
        part=where.part if op.collective else "communication",
        direction=where.direction,
        kind=op.collective.axes if op.collective else "host",
        bound="communication",
        precision="",
        count=count,
        flops=0.0,
        bytes=sent_bytes * count,
        seconds=exposed_s,
        busy_s=busy_s,
        roof_s=max(0.0, exposed_s - (busy_s - line_s)),
    )


def least_traffic(collective: Collective, cluster: Cluster) -> tuple[float, float]:
    """The least bytes that a device sends in a collective, and the rate of its slowest line.

    A ring sends (n - 1) / n of the array, an all-reduce twice (Thakur et al. 2005). Between nodes
    it leaves each node once: the members in one node share the lines that belong to each.

    Returns:
        bytes, and bytes/s of the peak.
    """
    kind, ranks, per_node = collective.kind, len(collective.group), cluster.devices_per_node
    link, network = cluster.link.bandwidth, cluster.network.bandwidth / per_node
    if cluster.network.topology == "torus-3d":  # every device has links of its own, all alike
        network = cluster.network.bandwidth
    if kind == "collective-permute":
        leaves = any(a // per_node != b // per_node for a, b in collective.hops)
        return collective.bytes, network if leaves else link
    nodes = len({rank // per_node for rank in collective.group})
    sent = PASSES.get(kind, 1.0) * collective.bytes * (ranks - 1) / ranks
    if nodes > 1 and cluster.network.topology == "torus-3d":
        return sent, 2 * len(cluster.network.sides) * network
    sharing = 1 if kind == "all-to-all" else ranks / nodes
    return sent, min(link, network * sharing) if nodes > 1 else link


def grouped(
    rows: Iterable[Row],
    key: Callable[[Row], tuple[str, ...]] = lambda row: (row.part, row.direction, row.kind),
) -> list[Row]:
    """Rows added up by part, direction and kind, or by another key, the longest first."""
    groups: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(key(row), []).append(row)
    return sorted(map(_sum, groups.values()), key=lambda row: -row.seconds)


def _sum(rows: Sequence[Row]) -> Row:
    longest = max(rows, key=lambda row: row.busy_s)
    return Row(
        part=longest.part,
        direction=longest.direction,
        kind=longest.kind,
        bound=longest.bound,
        precision=max(rows, key=lambda row: row.flops).precision,
        count=sum(row.count for row in rows),
        flops=sum(row.flops for row in rows),
        bytes=sum(row.bytes for row in rows),
        seconds=sum(row.seconds for row in rows),
        busy_s=sum(row.busy_s for row in rows),
        roof_s=sum(row.roof_s for row in rows),
    )
