"""Times of collectives over groups of a mesh, over arrays of layouts."""

import itertools
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike

from exajax.machine.cluster import Cluster
from exajax.program.hlo_collectives import Collective
from exajax.simulate.collectives.pricing import collective_time_s
from exajax.simulate.formulas.shared.layouts import Floats, distinct


def group_s(
    kind: str, bytes_: ArrayLike, ranks: ArrayLike, stride: ArrayLike, cluster: Cluster
) -> Floats:
    """Seconds of a collective over every group, shape [N]; 0 where a group has one member.

    In a permute each member sends to the next one, and the slowest hop counts: a ring whose first
    members are in one node may still lead from node to node.

    Args:
        kind: one of `program.hlo_collectives.KIND_OF_OPCODE`.
        bytes_: of the whole array, shape [N], as `Collective.bytes`.
        ranks: devices of each group.
        stride: devices from one member to the next.
        cluster: where.
    """
    columns = np.broadcast_arrays(
        *(np.atleast_1d(np.asarray(x, float)) for x in (bytes_, ranks, stride))
    )
    seconds = np.zeros(len(columns[0]))
    sent = (columns[0] > 0) & (columns[1] > 1)
    if sent.any():
        columns = tuple(column[sent] for column in columns)
        first, which = distinct(*columns)
        cases = zip(*(column[first] for column in columns), strict=True)
        of_cases = [_one_s(kind, size, int(n), int(step), cluster) for size, n, step in cases]
        seconds[sent] = np.array(of_cases)[which]
    return seconds


def _one_s(kind: str, size: float, ranks: int, stride: int, cluster: Cluster) -> float:
    group = _group(ranks, stride)
    hops = tuple(itertools.pairwise(group)) if kind == "collective-permute" else ()
    return collective_time_s(Collective(kind, int(size), group, "", hops), cluster)


@lru_cache(maxsize=4096)
def _group(ranks: int, stride: int) -> tuple[int, ...]:
    return tuple(range(0, ranks * stride, stride))
