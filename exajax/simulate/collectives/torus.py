"""Time of a collective in a 3D torus of devices, as TPU pods are."""

from exajax.machine.fabric import Network
from exajax.simulate.collectives.in_node import PASSES

WRAPS_FROM = 4
"""Devices along a side from which on it is a ring: slices are built of cubes of 4 x 4 x 4, and
these have full tori (docs.cloud.google.com/tpu/docs/v5p)."""


def time_s(kind: str, size: float, ranks: int, network: Network) -> tuple[float, str]:
    """Returns the seconds of a collective among devices of a torus, and its algorithm.

    A group is laid along one side while it fits the shortest, else over two or three, as nearly a
    square or a cube as can be. A ring along a side uses its links in both directions, and rings
    along several sides work at the same time, so an all-gather takes bytes x (n - 1) / n /
    (links x bandwidth); an all-to-all on a side of n takes n / 8 of a link's time for the bytes of
    one device (jax-ml/scaling-book, sharding). Latency is that of the hops to the farthest device.
    """
    if kind == "collective-permute":
        return network.latency(kind) + size / network.rate(kind), "direct"
    sides = 1
    while sides < 3 and ranks > min(network.sides) ** sides:
        sides += 1
    length = ranks ** (1 / sides)
    wraps = length >= WRAPS_FROM
    hops = sides * (length / 2 if wraps else length - 1)
    latency_s = PASSES.get(kind, 1.0) * hops * network.latency(kind)
    if kind == "all-to-all":
        # Without the wrap, traffic goes twice as far on average, over half as many links.
        return latency_s + size * length / (8 if wraps else 4) / network.rate(kind), "direct"
    links = sides * (2 if wraps else 1)
    part = 1.0 if kind == "collective-broadcast" else (ranks - 1) / ranks
    moved = PASSES.get(kind, 1.0) * size * part
    return latency_s + moved / (
        links * network.rate(kind)
    ), "ring" if sides == 1 else "hierarchical"
