"""Time of one collective: latency and bytes over bandwidth, in a node or between nodes."""

import math

from exajax.cluster import Cluster
from exajax.program.collectives import Collective

PASSES = {"all-reduce": 2.0}
"""How often a ring moves the array; an all-reduce is a reduce-scatter and an all-gather."""


def collective_time_s(collective: Collective, cluster: Cluster) -> float:
    """Returns the seconds from the last device's arrival until all have the result.

    A ring over n devices takes latency + passes x bytes x (n - 1) / n / bandwidth (Thakur et al.
    2005). Its bandwidth is that of one device's link, or, if less, that of its node's network
    divided among the groups that use it at the same time: every device of the node belongs to a
    group of the same shape. Latency grows with log2 of the number of nodes, as the smallest
    all-reduces do from 1 to 1,024 nodes of Frontier (ggracelii/mpich-rccl).
    """
    if collective.kind == "collective-permute":
        return _permute_time_s(collective, cluster)
    ranks = len(collective.group)
    nodes = len({rank // cluster.devices_per_node for rank in collective.group})
    rate = cluster.link.rate(collective.kind)
    kind, arrays = collective.kind, collective.arrays
    latency_s = cluster.link.latency(kind, arrays) if nodes < ranks else 0.0
    if nodes > 1:
        latency_s += cluster.network.latency(kind, arrays) * math.ceil(math.log2(nodes))
        # Of an all-to-all nearly everything leaves the node; a ring leaves it once for the group.
        sharing = 1 if collective.kind == "all-to-all" else ranks / nodes
        per_device = cluster.network.rate(collective.kind) / cluster.devices_per_node
        rate = min(rate, per_device * sharing)
    moved = PASSES.get(collective.kind, 1.0) * collective.bytes * (ranks - 1) / ranks
    return latency_s + moved / rate


def _permute_time_s(collective: Collective, cluster: Cluster) -> float:
    """Returns the time of the slowest hop: between nodes if any is, else inside one."""
    kind, per_node = collective.kind, cluster.devices_per_node
    if any(a // per_node != b // per_node for a, b in collective.hops):
        rate = min(cluster.link.rate(kind), cluster.network.rate(kind) / per_node)
        return cluster.network.latency(kind) + collective.bytes / rate
    return cluster.link.latency(kind) + collective.bytes / cluster.link.rate(kind)
