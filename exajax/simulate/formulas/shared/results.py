"""Time and memory of a step in every layout, by what they go to."""

import dataclasses
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from exajax.machine.cluster import Cluster
from exajax.simulate.formulas.shared.layouts import Floats, Layouts


@dataclass(frozen=True)
class Times:
    """Where the seconds of a step go in every layout; all of shape [N] and counted once.

    Attributes:
        compute: matrix products and attention.
        memory_bound: operations limited by memory bandwidth.
        optimizer: the update.
        other: the device idle until the host has started its step or kernel.
        tensor: exposed collectives of tensor-parallel sublayers.
        context: exposed keys and values in a ring.
        expert: exposed exchanges of tokens with experts.
        shards: exposed gathering of parameters and scattering of gradients.
        gradients: exposed sums of gradients over replicas, and gathering of updated parameters.
        stages: exposed sending between pipeline stages.
        bubble: pipeline slots without a micro-batch.
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


@dataclass(frozen=True)
class Footprint:
    """Bytes on the device that needs most of them; all of shape [N].

    Attributes:
        parameters: parameters that the optimizer updates.
        gradients: gradients, and sums of them over micro-batches.
        optimizer: optimizer state.
        activations: what the forward pass saves for the backward pass.
        temporaries: work space of the passes, and copies of parameters.
    """

    parameters: Floats
    gradients: Floats
    optimizer: Floats
    activations: Floats
    temporaries: Floats

    @property
    def total(self) -> Floats:
        """The peak, shape [N]."""
        total: Floats = sum(getattr(self, field.name) for field in dataclasses.fields(self))
        return total


def slowest_share(layouts: Layouts, cluster: Cluster) -> Floats:
    """How much longer the slowest of all devices takes in the median step, as a share, [N].

    The largest of N log-normal factors is at most its quantile U^(1/N) with probability U.
    """
    counts, which = np.unique(layouts.devices, return_inverse=True)
    sigma = cluster.variability.compute
    shares = [np.expm1(sigma * NormalDist().inv_cdf(0.5 ** (1 / n))) for n in counts]
    return np.array(shares)[which.reshape(-1)]
