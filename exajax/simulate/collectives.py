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
    ranks = len(collective.group)
    nodes = len({rank // cluster.devices_per_node for rank in collective.group})
    link_rate = cluster.link.bandwidth * cluster.link.efficiency
    latency_s = cluster.link.latency(collective.kind) if nodes < ranks else 0.0
    rate = link_rate
    if nodes > 1:
        network_rate = cluster.network.bandwidth * cluster.network.efficiency
        latency_s += cluster.network.latency(collective.kind) * math.ceil(math.log2(nodes))
        per_device = network_rate / cluster.devices_per_node
        if collective.kind in ("all-to-all", "collective-permute"):
            rate = min(link_rate, per_device)
        else:
            rate = min(link_rate, per_device * ranks / nodes)
    if collective.kind == "collective-permute":
        return latency_s + collective.bytes / rate
    moved = PASSES.get(collective.kind, 1.0) * collective.bytes * (ranks - 1) / ranks
    return latency_s + moved / rate
