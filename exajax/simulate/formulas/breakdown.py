"""Where the seconds of a step go in every layout."""

import dataclasses
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from exajax.machine.cluster import Cluster
from exajax.simulate.formulas.layouts import Floats, Layouts


@dataclass(frozen=True)
class Times:
    """Where the seconds of a step go in every layout; all of shape [N] and counted once.

    Attributes:
        compute: matrix products and attention.
        memory_bound: operations that wait for memory.
        optimizer: the update.
        other: waiting for the host, which starts steps and kernels.
        tensor: waiting for tensor-parallel sublayers to add up.
        context: waiting for keys and values.
        expert: waiting for tokens on their way to experts and back.
        shards: waiting for parameters that are gathered and gradients that are scattered.
        gradients: waiting for replicas to add up gradients and gather what was updated.
        stages: waiting for the stage before or behind.
        bubble: stages that have nothing to do.
        stragglers: waiting for the slowest of all devices.
    """

    compute: Floats
    memory_bound: Floats
    optimizer: Floats
    other: Floats
    tensor: Floats
    context: Floats
    expert: Floats
    shards: Floats
    gradients: Floats
    stages: Floats
    bubble: Floats
    stragglers: Floats

    @property
    def step_s(self) -> Floats:
        """Seconds of the median step."""
        total: Floats = sum(getattr(self, field.name) for field in dataclasses.fields(self))
        return total


def slowest_share(layouts: Layouts, cluster: Cluster) -> Floats:
    """Returns how much longer the slowest of all devices takes in the median step, as a share.

    The largest of N log-normal factors is at most its quantile U^(1/N) with probability U.
    """
    counts, which = np.unique(layouts.devices, return_inverse=True)
    sigma = cluster.variability.compute
    shares = [np.expm1(sigma * NormalDist().inv_cdf(0.5 ** (1 / n))) for n in counts]
    return np.array(shares)[which.reshape(-1)]
