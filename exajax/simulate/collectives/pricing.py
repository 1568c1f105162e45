"""Time of one collective, and the algorithm that takes it: in a node, between nodes, in a torus."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from exajax.machine.cluster import Cluster
from exajax.program.hlo_collectives import Collective
from exajax.simulate.collectives import between_nodes, torus
from exajax.simulate.collectives.between_nodes import Layout
from exajax.simulate.collectives.in_node import in_node_time_s

DIRECT = {"all-to-all", "collective-permute"}
"""Kinds in which devices send to each other what they have, and nothing is passed on."""


@dataclass(frozen=True)
class CollectivePrice:
    """What a collective costs.

    Attributes:
        seconds: from the last device's arrival until all have the result.
        algorithm: `ring` · `tree` · `in-switch`, where the switches reduce · `direct` ·
            `hierarchical`, one side of a torus after the other.
    """

    seconds: float
    algorithm: str


def collective_time_s(collective: Collective, cluster: Cluster) -> float:
    """Returns the seconds from the last device's arrival until all have the result."""
    return collective_price(collective, cluster).seconds


def collective_price(collective: Collective, cluster: Cluster) -> CollectivePrice:
    """Returns the time of a collective and the algorithm that the library would take.

    A group that lies in one node is priced by what was measured there (`in_node`). Between nodes
    (`between_nodes`) every device of a node belongs to a group of the same shape and communicates
    at the same time, so a group has the share of its node's network that it has of its devices.
    In a torus (`torus`) there is no such border.
    """
    if collective.kind == "collective-permute":
        return CollectivePrice(_permute_time_s(collective, cluster), "direct")
    kind, ranks = collective.kind, len(collective.group)
    if ranks < 2:
        return CollectivePrice(0.0, "direct")
    link, network = cluster.link, cluster.network
    pod_nodes = network.pod.nodes if network.pod else cluster.nodes
    layout = _layout(collective.group, cluster.devices_per_node, pod_nodes)
    if layout.nodes == 1:
        seconds = in_node_time_s(kind, collective.bytes, ranks, link, collective.arrays)
        in_switch = kind == "all-reduce" and link.in_switch_from and ranks >= link.in_switch_from
        direct = "direct" if kind in DIRECT else "ring"
        return CollectivePrice(seconds, "in-switch" if in_switch else direct)
    if network.topology == "torus-3d":
        return CollectivePrice(*torus.time_s(kind, collective.bytes, ranks, network))
    seconds, algorithm = between_nodes.time_s(
        kind, collective.bytes, layout, cluster.devices_per_node, link, network
    )
    fabrics = (link, network) if layout.per_node > 1 else (network,)
    return CollectivePrice(
        seconds + sum(fabric.further_arrays_s(collective.arrays) for fabric in fabrics), algorithm
    )


@lru_cache(maxsize=1024)
def _layout(group: tuple[int, ...], devices_per_node: int, pod_nodes: int) -> Layout:
    nodes, members = np.unique(np.asarray(group) // devices_per_node, return_counts=True)
    in_pods = np.unique(nodes // pod_nodes, return_counts=True)[1]
    return Layout(len(group), len(nodes), int(members.max()), len(in_pods), int(in_pods.max()))


def _permute_time_s(collective: Collective, cluster: Cluster) -> float:
    """Returns the time of the slowest hop. Every device of a node may send out at the same time."""
    kind, size, network = collective.kind, collective.bytes, cluster.network
    pod_nodes = network.pod.nodes if network.pod else cluster.nodes
    inside, across, between_pods = _hops(collective.hops, cluster.devices_per_node, pod_nodes)
    seconds = in_node_time_s(kind, size, 2, cluster.link) if inside else 0.0
    if across and network.topology == "torus-3d":
        seconds = max(seconds, torus.time_s(kind, size, 2, network)[0])
    elif across:
        rate = network.rate(kind) / cluster.devices_per_node
        if between_pods and network.pod:
            rate *= network.pod.uplink
        seconds = max(seconds, network.latency(kind) + size / rate)
    return seconds


@lru_cache(maxsize=1024)
def _hops(
    hops: tuple[tuple[int, int], ...], devices_per_node: int, pod_nodes: int
) -> tuple[bool, bool, bool]:
    """Returns whether hops stay in a node, leave one, leave a pod."""
    nodes = np.asarray(hops) // devices_per_node
    leaves = nodes[:, 0] != nodes[:, 1]
    pods = nodes // pod_nodes
    return not leaves.all(), bool(leaves.any()), bool((pods[:, 0] != pods[:, 1]).any())
