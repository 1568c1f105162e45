"""Interconnects: the links within a node, the network between nodes, and their variability."""

import math
from bisect import bisect_right
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BeforeValidator, Field, PlainValidator

from exajax.errors import nearest
from exajax.files.reading import Malformed, read_toml, shown
from exajax.machine.sourced_values import (
    BYTES,
    MICROSECONDS,
    TABLE,
    Bandwidth,
    Count,
    Fraction,
    Seconds,
    Share,
    ascending_pairs,
    integer,
    one_of,
    tuple_of,
    value_of,
)

FABRICS = Path(__file__).parents[1] / "meshes" / "fabrics"

TOPOLOGIES = ("fat-tree", "dragonfly", "torus-3d")

MEASURABLE_KINDS = {"all-reduce", "all-gather", "reduce-scatter", "all-to-all"}
"""Kinds of collective for which a fabric can give measured times."""

COLLECTIVE_KINDS = {*MEASURABLE_KINDS, "collective-permute", "collective-broadcast", "other"}
"""Kinds of collective that have an efficiency and a latency; `other` is for all kinds not given."""


@dataclass(frozen=True)
class CollectiveTimes:
    """Measured times of one kind of collective over one number of devices.

    Attributes:
        bytes: sizes of the array, ascending; `Collective` defines which array.
        seconds: time for each size, non-decreasing.
    """

    bytes: tuple[float, ...]
    seconds: tuple[float, ...]

    @cached_property
    def _logs(self) -> tuple[list[float], list[float]]:
        return [math.log(x) for x in self.bytes], [math.log(y) for y in self.seconds]

    def at(self, size: float) -> float:
        """Seconds for an array of `size` bytes, interpolated.

        Between two measured sizes a power law; below them the time of the smallest, above them
        the bytes/s of the largest.
        """
        if size <= self.bytes[0]:
            return self.seconds[0]
        if size >= self.bytes[-1]:
            return self.seconds[-1] * size / self.bytes[-1]
        log_sizes, log_times = self._logs
        x = math.log(size)
        right = min(bisect_right(log_sizes, x), len(log_sizes) - 1)
        part = (x - log_sizes[right - 1]) / (log_sizes[right] - log_sizes[right - 1])
        return math.exp(log_times[right - 1] + part * (log_times[right] - log_times[right - 1]))


def _collective_times(pair: Any) -> CollectiveTimes:
    sizes, micros = ascending_pairs(value_of(pair), BYTES, MICROSECONDS)
    if list(micros) != sorted(micros):
        raise Malformed("", "has a time that falls", "give times that never fall")
    return CollectiveTimes(sizes, tuple(1e-6 * time for time in micros))


def _device_count(key: Any) -> int:
    if not isinstance(key, str) or not (key.isascii() and key.isdecimal() and len(key) < 8):
        raise Malformed("", f"{shown(key)} is not a number of devices", "write 2 or more")
    return integer(int(key), 2, 10**7)


def _not_empty(table: dict[int, CollectiveTimes]) -> dict[int, CollectiveTimes]:
    if not table:
        raise Malformed("", "has no times", 'write 8 = [[[1024, 15.2], ...], "source"]')
    return dict(sorted(table.items()))


def _key(*known: str) -> BeforeValidator:
    return BeforeValidator(lambda key: one_of(key, known))


Measurements = Annotated[
    dict[
        Annotated[int, PlainValidator(_device_count)],
        Annotated[CollectiveTimes, PlainValidator(_collective_times)],
    ],
    AfterValidator(_not_empty),
]
"""Measured times by number of devices: `8 = [[[bytes, microseconds], ...], "source"]`."""

Kind = Annotated[str, _key(*COLLECTIVE_KINDS)]
LatencyKind = Annotated[str, _key(*COLLECTIVE_KINDS, "further-array")]
MeasurableKind = Annotated[str, _key(*MEASURABLE_KINDS)]


@dataclass(frozen=True)
class Fabric:
    """An interconnect: a `[link]` within a node, or a file in `meshes/fabrics`.

    Attributes:
        bandwidth: bytes/s in one direction: of one device for a link, of one node for a network,
            of one link of a device for a torus.
        efficiency: fraction of the bandwidth that large collectives reach, by kind (`all-reduce`,
            or `other`).
        latency_s: time of an empty collective, by kind (`all-reduce`, or `other`): for a network,
            over two nodes; for a torus, of one hop. The key `further-array` is the time that each
            array after the first adds to a combined collective: 0 where the library sends them as
            one, as NCCL does; XLA's CPU backend sends them one after the other.
        times: measured times by kind and number of devices; they replace efficiency and latency.
        in_switch_from: least number of devices at which the switches reduce; None if they never do.
    """

    __pydantic_config__ = TABLE

    bandwidth: Bandwidth
    efficiency: dict[Kind, Fraction] = field(default_factory=dict)
    latency_s: Annotated[dict[LatencyKind, Seconds], Field(validation_alias="latency")] = field(
        default_factory=dict
    )
    times: Annotated[dict[MeasurableKind, Measurements], Field(validation_alias="microseconds")] = (
        field(default_factory=dict)
    )
    in_switch_from: Count | None = None

    def rate(self, kind: str) -> float:
        """Bytes/s that large collectives of a kind reach."""
        return self.bandwidth * self.efficiency.get(kind, self.efficiency["other"])

    def latency(self, kind: str, arrays: int = 1) -> float:
        """Seconds of an empty collective of a kind, combined over a number of arrays."""
        first = self.latency_s.get(kind, self.latency_s["other"])
        return first + self.further_arrays_s(arrays)

    def further_arrays_s(self, arrays: int) -> float:
        """Seconds that the arrays after the first add to a combined collective."""
        return (arrays - 1) * self.latency_s.get("further-array", 0.0)


@dataclass(frozen=True)
class Tree:
    """All-reduces over trees of nodes, through which an array is pipelined in chunks.

    Attributes:
        efficiency: fraction of a node's bandwidth that large arrays reach.
        fill_s: cost of filling the pipeline; the time in the square-root law of
            `exajax.simulate.collectives.between_nodes`.
    """

    __pydantic_config__ = TABLE

    efficiency: Fraction
    fill_s: Annotated[Seconds, Field(validation_alias="fill")]


@dataclass(frozen=True)
class Pod:
    """A group of nodes that communicate at full bandwidth; between pods there is less.

    Attributes:
        nodes: nodes in one pod.
        uplink: bandwidth out of the pod / total bandwidth of its nodes: 1/7 for an
            oversubscription of 7:1.
    """

    __pydantic_config__ = TABLE

    nodes: Count
    uplink: Fraction


def _torus_sides(pair: Any) -> tuple[int, ...]:
    return tuple_of(value_of(pair), lambda side: integer(side, 1, 10**5), most=3)


@dataclass(frozen=True)
class Network(Fabric):
    """The network between nodes: a `[network]`.

    Attributes:
        topology: one of `TOPOLOGIES`.
        tree: cost of all-reduces over trees; None if only rings are used.
        pod: group of nodes beyond which a fat tree or dragonfly has less bandwidth; None if it is
            the same everywhere, or if the measured efficiency includes it.
        sides: devices along each side of a torus; empty for other topologies.
    """

    __pydantic_config__ = TABLE

    topology: Annotated[str, _key(*TOPOLOGIES)] = "fat-tree"
    tree: Tree | None = None
    pod: Pod | None = None
    sides: Annotated[tuple[int, ...], PlainValidator(_torus_sides)] = ()


@dataclass(frozen=True)
class Variability:
    """Spread of nominally equal times, as the standard deviation of their logarithm.

    Attributes:
        compute: spread of compute time between devices.
        network: spread of the time of a collective between nodes, from one call to the next.
    """

    __pydantic_config__ = TABLE

    compute: Share
    network: Share


def with_named_fabric(table: Any) -> Any:
    """A machine's `[link]` or `[network]`, merged over the fabric that it names.

    `fabric = "nvswitch-h100"` includes everything in `meshes/fabrics/nvswitch-h100.toml`; the
    table's other keys override it.

    Raises:
        Malformed: there is no fabric of that name.
    """
    if not isinstance(table, dict) or "fabric" not in table:
        return table
    files = {path.stem: path for path in FABRICS.glob("*.toml")}
    name = table["fabric"]
    if not isinstance(name, str) or name not in files:
        raise Malformed(
            "fabric", f"is {shown(name)}, which is none", nearest(str(name)[:100], files)
        )
    overrides = {key: value for key, value in table.items() if key != "fabric"}
    return _deep_merge(read_toml(files[name]), overrides)


def _deep_merge(base: dict[str, Any], overrides: dict[str, Any]) -> dict[str, Any]:
    merged = {
        key: _deep_merge(base[key], value)
        if isinstance(value, dict) and isinstance(base.get(key), dict)
        else value
        for key, value in overrides.items()
    }
    return base | merged


AnyFabric = TypeVar("AnyFabric", bound=Fabric)


def _check_complete(fabric: AnyFabric) -> AnyFabric:
    """Checks that every kind of collective can be priced: by measured times, or by a rate."""
    if not fabric.times.keys() >= MEASURABLE_KINDS or fabric.latency_s:
        for name, by_kind in (("efficiency", fabric.efficiency), ("latency", fabric.latency_s)):
            if "other" not in by_kind:
                raise Malformed(f"{name}.other", "is missing", "add it")
    if isinstance(fabric, Network) and (fabric.topology == "torus-3d") != bool(fabric.sides):
        problem = f"is of a torus, not of a {fabric.topology}" if fabric.sides else "is missing"
        raise Malformed(
            "sides", problem, 'write sides = [[16, 20, 28], "source"] of a torus-3d alone'
        )
    return fabric


Link = Annotated[Fabric, BeforeValidator(with_named_fabric), AfterValidator(_check_complete)]
"""Field type of `[link]`: the interconnect between the devices of a node."""

BetweenNodes = Annotated[
    Network, BeforeValidator(with_named_fabric), AfterValidator(_check_complete)
]
"""Field type of `[network]`: the interconnect between nodes."""
