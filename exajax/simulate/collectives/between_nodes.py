"""Time of a collective between nodes: rings and trees over the network, links inside the nodes."""

import math
from dataclasses import dataclass

from exajax.machine.fabric import Fabric, Network
from exajax.simulate.collectives.in_node import in_node_time_s, moved_bytes


@dataclass(frozen=True)
class Layout:
    """Where the devices of a group are.

    Attributes:
        ranks: devices.
        nodes: nodes that they are on.
        per_node: most devices on one node.
        pods: pods that the nodes are in.
        in_pod: most nodes in one pod.
    """

    ranks: int
    nodes: int
    per_node: int
    pods: int
    in_pod: int


def time_s(
    kind: str, size: float, layout: Layout, devices_per_node: int, link: Fabric, network: Network
) -> tuple[float, str]:
    """Returns the seconds of a collective over several nodes, and its algorithm.

    Libraries pipeline: while one part of the array is between nodes, another is inside one. So
    the slower of the two counts, behind the latency of the links. All-reduces take the faster of
    ring and tree, everything else has only the ring (NCCL before its PAT); an all-to-all sends
    directly.
    """
    share = layout.ranks / layout.nodes / devices_per_node
    if kind == "all-to-all":
        seconds, algorithm = _exchange_s(size, layout, devices_per_node, network), "direct"
    else:
        seconds, algorithm = _ring_s(kind, size, layout, share, network), "ring"
    if kind == "all-reduce" and network.tree:
        seconds, algorithm = min(
            (seconds, algorithm), (_tree_s(size, layout, share, network), "tree")
        )
    if layout.per_node == 1:
        return seconds, algorithm
    first_s = in_node_time_s(kind, 0.0, layout.per_node, link)
    inside_s = in_node_time_s(kind, _size_inside(kind, size, layout), layout.per_node, link)
    return first_s + max(seconds, inside_s - first_s), algorithm


def _ring_s(kind: str, size: float, layout: Layout, share: float, network: Network) -> float:
    """Latency of every node, and what a ring moves over the group's share of a node's network.

    Of a ring that runs through its nodes one pod after the other, one line in `in_pod` leaves the
    pod.
    """
    rate = network.rate(kind) * share / _narrowing(layout, 1 / layout.in_pod, network)
    latency_s = network.latency(kind) * (layout.nodes - 1)
    return latency_s + moved_bytes(kind, size, layout.ranks) / rate


def _tree_s(size: float, layout: Layout, share: float, network: Network) -> float:
    """Latency of every level up and down, and the pipeline over them.

    Cutting the array into k parts costs k latencies and saves waiting for whole arrays on every
    level; the best k leaves a term with the square root of the bytes. Its coefficient `fill_s` is
    fitted, as is that it grows with the number of levels (`benchmarks/fit_collectives.py`).
    """
    assert network.tree is not None
    levels = math.log2(layout.nodes)
    line = network.bandwidth * share / _narrowing(layout, 1 / layout.in_pod, network)
    fill_s = 2 * math.sqrt(network.tree.fill_s * size / line)
    moved = moved_bytes("all-reduce", size, layout.nodes)
    return levels * (network.latency("all-reduce") + fill_s) + moved / (
        line * network.tree.efficiency
    )


def _exchange_s(size: float, layout: Layout, devices_per_node: int, network: Network) -> float:
    """What of an all-to-all leaves the node, over the device's own share of its network."""
    leaving = 1 - layout.in_pod / layout.nodes
    rate = network.rate("all-to-all") / devices_per_node / _narrowing(layout, leaving, network)
    sent = size * (1 - layout.per_node / layout.ranks)
    return network.latency("all-to-all") * (layout.nodes - 1) + sent / rate


def _narrowing(layout: Layout, leaving: float, network: Network) -> float:
    """How much slower it gets between pods, of whose traffic the part `leaving` leaves the pod."""
    if layout.pods == 1 or network.pod is None:
        return 1.0
    return max(1.0, leaving / network.pod.uplink)


def _size_inside(kind: str, size: float, layout: Layout) -> float:
    """Bytes of the collective in one node whose links carry as much as this one's do."""
    if kind == "all-to-all":
        return size * layout.per_node / layout.ranks
    return size * moved_bytes(kind, 1.0, layout.ranks) / moved_bytes(kind, 1.0, layout.per_node)
