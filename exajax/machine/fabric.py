"""What devices communicate over: the links in a node, the network between nodes, and its noise."""

import math
from bisect import bisect_right
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BeforeValidator, Field, PlainValidator

from exajax.errors import nearest
from exajax.files.reading import Malformed, read_toml, shown
from exajax.machine.figures import (
    BYTES,
    MICROSECONDS,
    TABLE,
    Bandwidth,
    Count,
    Fraction,
    Seconds,
    Share,
    one_of,
    points,
    value_of,
    values,
    whole,
)

FABRICS = Path(__file__).parents[1] / "meshes" / "fabrics"

TOPOLOGIES = ("fat-tree", "dragonfly", "torus-3d")

MEASURED = {"all-reduce", "all-gather", "reduce-scatter", "all-to-all"}
"""Kinds of collective that a fabric can have measured times of."""

KINDS = {*MEASURED, "collective-permute", "collective-broadcast", "other"}
"""Kinds of collective that have an efficiency and a latency; `other` stands for all not named."""


@dataclass(frozen=True)
class Times:
    """Measured times of one kind of collective over one size of group.

    Attributes:
        bytes: sizes of the array, ascending; `Collective` says which array.
        seconds: time at each, never falling.
    """

    bytes: tuple[float, ...]
    seconds: tuple[float, ...]

    @cached_property
    def _logs(self) -> tuple[list[float], list[float]]:
        return [math.log(x) for x in self.bytes], [math.log(y) for y in self.seconds]

    def at(self, size: float) -> float:
        """Returns the seconds for an array of `size` bytes.

        A power law between the points; below them the time of the smallest, above them the
        bytes/s of the largest.
        """
        if size <= self.bytes[0]:
            return self.seconds[0]
        if size >= self.bytes[-1]:
            return self.seconds[-1] * size / self.bytes[-1]
        sizes, times = self._logs
        x = math.log(size)
        right = min(bisect_right(sizes, x), len(sizes) - 1)
        part = (x - sizes[right - 1]) / (sizes[right] - sizes[right - 1])
        return math.exp(times[right - 1] + part * (times[right] - times[right - 1]))


def _times(pair: Any) -> Times:
    sizes, micros = points(value_of(pair), BYTES, MICROSECONDS)
    if list(micros) != sorted(micros):
        raise Malformed("", "has a time that falls", "give times that never fall")
    return Times(sizes, tuple(1e-6 * time for time in micros))


def _devices(key: Any) -> int:
    if not isinstance(key, str) or not (key.isascii() and key.isdecimal() and len(key) < 8):
        raise Malformed("", f"{shown(key)} is not a number of devices", "write 2 or more")
    return whole(int(key), 2, 10**7)


def _some(table: dict[int, Times]) -> dict[int, Times]:
    if not table:
        raise Malformed("", "has no times", 'write 8 = [[[1024, 15.2], ...], "source"]')
    return dict(sorted(table.items()))


def _key(*known: str) -> BeforeValidator:
    return BeforeValidator(lambda key: one_of(key, known))


Measurements = Annotated[
    dict[Annotated[int, PlainValidator(_devices)], Annotated[Times, PlainValidator(_times)]],
    AfterValidator(_some),
]
"""Measured times by number of devices: `8 = [[[bytes, microseconds], ...], "source"]`."""


@dataclass(frozen=True)
class Fabric:
    """Links that devices communicate over: a `[link]`, or a file in `meshes/fabrics`.

    Attributes:
        bandwidth: bytes/s, one direction: of one device inside a node, of one node outside; of one
            link of a device in a torus.
        efficiency: fraction of it that large collectives reach, by kind (`all-reduce`), or `other`.
        latency_s: time of a collective with nothing to send, by kind (`all-reduce`), or
            `other`; on a network, over two nodes, in a torus, of one hop. `further-array` is what
            each array of a combined collective adds behind the first: nothing where the library
            sends them as one, as NCCL does; XLA's CPU backend sends them one after the other.
        times: measured times by kind and number of devices. They replace efficiency and latency.
        in_switch_from: devices from which on the switches themselves reduce; None if they do not.
    """

    __pydantic_config__ = TABLE

    bandwidth: Bandwidth
    efficiency: dict[Annotated[str, _key(*KINDS)], Fraction] = field(default_factory=dict)
    latency_s: Annotated[
        dict[Annotated[str, _key(*KINDS, "further-array")], Seconds],
        Field(validation_alias="latency"),
    ] = field(default_factory=dict)
    times: Annotated[
        dict[Annotated[str, _key(*MEASURED)], Measurements], Field(validation_alias="microseconds")
    ] = field(default_factory=dict)
    in_switch_from: Count | None = None

    def rate(self, kind: str) -> float:
        """Returns the bytes/s that one kind of collective reaches."""
        return self.bandwidth * self.efficiency.get(kind, self.efficiency["other"])

    def latency(self, kind: str, arrays: int = 1) -> float:
        """Returns the latency of one kind of collective over so many arrays at once."""
        first = self.latency_s.get(kind, self.latency_s["other"])
        return first + self.further_arrays(arrays)

    def further_arrays(self, arrays: int) -> float:
        """Returns what the arrays of a combined collective behind the first add, in s."""
        return (arrays - 1) * self.latency_s.get("further-array", 0.0)


@dataclass(frozen=True)
class Tree:
    """All-reduces over trees of nodes.

    Attributes:
        efficiency: fraction of a node's bandwidth that a long pipeline over them reaches.
        fill_s: what filling the pipeline costs; the time of the square root law in
            `simulate.between_nodes`.
    """

    __pydantic_config__ = TABLE

    efficiency: Fraction
    fill_s: Annotated[Seconds, Field(validation_alias="fill")]


@dataclass(frozen=True)
class Pod:
    """Nodes that reach each other at full rate; between pods there is less.

    Attributes:
        nodes: nodes of one.
        uplink: fraction of its nodes' bandwidth that leaves it, 1/7 where it is said to be
            oversubscribed 7:1.
    """

    __pydantic_config__ = TABLE

    nodes: Count
    uplink: Fraction


def _sides(pair: Any) -> tuple[int, ...]:
    return values(value_of(pair), lambda side: whole(side, 1, 10**5), most=3)


@dataclass(frozen=True)
class Network(Fabric):
    """The network between nodes: a `[network]`.

    Attributes:
        topology: one of `TOPOLOGIES`.
        tree: what is known of all-reduces over trees; None where only rings are.
        pod: where bandwidth narrows, of a fat tree or a dragonfly; None if nowhere, or where a
            measured efficiency has it in it.
        sides: of a torus, devices along each side.
    """

    __pydantic_config__ = TABLE

    topology: Annotated[str, _key(*TOPOLOGIES)] = "fat-tree"
    tree: Tree | None = None
    pod: Pod | None = None
    sides: Annotated[tuple[int, ...], PlainValidator(_sides)] = ()


@dataclass(frozen=True)
class Variability:
    """Spread of what takes the same time on paper, as standard deviation of the logarithm.

    Attributes:
        compute: of the speed of a device that computes, between devices.
        network: of the time of a collective between nodes, from one run to the next.
    """

    __pydantic_config__ = TABLE

    compute: Share
    network: Share


def with_shared(table: Any) -> Any:
    """Returns a machine's `[link]` or `[network]` with the figures of the fabric that it names.

    `fabric = "nvswitch-h100"` brings all that stands in `meshes/fabrics/nvswitch-h100.toml`; what
    stands beside it goes first.

    Raises:
        Malformed: there is no such fabric.
    """
    if not isinstance(table, dict) or "fabric" not in table:
        return table
    files = {path.stem: path for path in FABRICS.glob("*.toml")}
    name = table["fabric"]
    if not isinstance(name, str) or name not in files:
        raise Malformed(
            "fabric", f"is {shown(name)}, which is none", nearest(str(name)[:100], files)
        )
    own = {key: value for key, value in table.items() if key != "fabric"}
    return _merged(read_toml(files[name]), own)


def _merged(under: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    both = {
        key: _merged(under[key], value)
        if isinstance(value, dict) and isinstance(under.get(key), dict)
        else value
        for key, value in over.items()
    }
    return under | both


AnyFabric = TypeVar("AnyFabric", bound=Fabric)


def _complete(fabric: AnyFabric) -> AnyFabric:
    """Checks that every kind of collective has a time, measured or of a line."""
    if not fabric.times.keys() >= MEASURED or fabric.latency_s:
        for name, given in (("efficiency", fabric.efficiency), ("latency", fabric.latency_s)):
            if "other" not in given:
                raise Malformed(f"{name}.other", "is missing", "add it")
    if isinstance(fabric, Network) and (fabric.topology == "torus-3d") != bool(fabric.sides):
        what = "is missing" if not fabric.sides else f"is of a torus, not of a {fabric.topology}"
        raise Malformed("sides", what, 'write sides = [[16, 20, 28], "source"] of a torus-3d alone')
    return fabric


Link = Annotated[Fabric, BeforeValidator(with_shared), AfterValidator(_complete)]
"""`[link]`: between the devices of a node."""

BetweenNodes = Annotated[Network, BeforeValidator(with_shared), AfterValidator(_complete)]
"""`[network]`: between nodes."""
