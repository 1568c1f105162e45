"""Time of a collective among devices of one node: measured, or latency and bytes over bandwidth."""

import math
from bisect import bisect_left

from exajax.machine.fabric import CollectiveTimes, Fabric

PASSES = {"all-reduce": 2.0}
"""How often a ring moves the array; an all-reduce is a reduce-scatter and an all-gather."""


def in_node_time_s(kind: str, size: float, ranks: int, link: Fabric, arrays: int = 1) -> float:
    """Returns the seconds of a collective among devices of one node.

    Where a kind was measured, its times are interpolated: by a power law in bytes, and by one in
    the number of devices. A permute is half an all-to-all of two devices, each of which keeps half
    of its array; a broadcast passes the whole array down a ring, as an all-gather does all but one
    part. Where nothing was measured, a ring takes latency + passes x bytes x (n - 1) / n /
    bandwidth (Thakur et al. 2005). Nothing is faster than the line.

    Args:
        kind: one of `program.hlo_collectives.KIND_OF_OPCODE`.
        size: bytes, of what `Collective` says.
        ranks: devices of the group, 2 or more.
        link: the links of the node.
        arrays: how many arrays were combined.
    """
    moved = moved_bytes(kind, size, ranks)
    stands_for, same_size = kind, size
    if kind == "collective-permute":
        stands_for, same_size, ranks = "all-to-all", 2 * size, 2
    elif kind == "collective-broadcast":
        stands_for, same_size = "all-gather", size * ranks / (ranks - 1)
    if stands_for in link.times:
        seconds = _interpolated(link.times[stands_for], same_size, ranks)
    else:
        seconds = link.latency(kind) + moved / link.rate(kind)
    in_switch = kind == "all-reduce" and link.in_switch_from and ranks >= link.in_switch_from
    least = (size if in_switch else moved) / link.bandwidth
    return max(seconds, least) + link.further_arrays_s(arrays)


def moved_bytes(kind: str, size: float, ranks: int) -> float:
    """Returns the bytes that a device sends in a ring, or in an exchange with all others."""
    if kind in ("collective-permute", "collective-broadcast"):
        return size
    return PASSES.get(kind, 1.0) * size * (ranks - 1) / ranks


def _interpolated(times: dict[int, CollectiveTimes], size: float, ranks: int) -> float:
    """Returns a time between the two measured numbers of devices around `ranks`.

    Beyond them that of the nearest, by what a ring moves.
    """
    if ranks in times:
        return times[ranks].at(size)
    measured = list(times)
    right = bisect_left(measured, ranks)
    if 0 < right < len(measured):
        few, many = measured[right - 1], measured[right]
        part = math.log(ranks / few) / math.log(many / few)
        return times[few].at(size) ** (1 - part) * times[many].at(size) ** part
    nearest = measured[min(right, len(measured) - 1)]
    return times[nearest].at(size) * ((ranks - 1) / ranks) / ((nearest - 1) / nearest)
