"""How much a step time varies: a synchronous step waits for the slowest of all devices."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from statistics import NormalDist

import numpy as np

from exajax.machine.cluster import Cluster
from exajax.simulate.timeline import Breakdown

DRAWS = 10_000
SEED = 0
"""Of the draws: the same step on the same machine varies the same, whenever it is asked."""


@dataclass(frozen=True)
class Spread:
    """Percentiles of a simulated step time, in seconds."""

    p50_s: float
    p95_s: float
    p99_s: float


@dataclass(frozen=True)
class StepVariability:
    """How much the time of a simulated step varies.

    Attributes:
        kind: `simulated`.
        nominal_s: seconds of a step on devices that are all alike.
        p50_s: median, in seconds.
        p95_s: 95th percentile.
        p99_s: 99th percentile.
        compute_sigma: standard deviation of the logarithm of a device's time.
        network_sigma: of a collective's.
        source: where the two deviations are from.
    """

    kind: str
    nominal_s: float
    p50_s: float
    p95_s: float
    p99_s: float
    compute_sigma: float
    network_sigma: float
    source: Mapping[str, str]


def step_times(
    compute_s: float,
    exposed_s: Mapping[str, float],
    devices: int,
    *,
    compute_sigma: float,
    network_sigma: float,
    seed: int,
) -> np.ndarray:
    """Returns `DRAWS` step times in s, the same for the same arguments.

    A device computes for `compute_s` times a log-normal factor of median 1, and the step goes on
    with the slowest of N. If U is uniform, U^(1/N) is the quantile at which the largest of N lies
    (David and Nagaraja, Order Statistics, 2003, section 2.1), and -log U is exponential. Waits for
    collectives are multiplied by a log-normal factor, one for each of the mesh axes.

    Args:
        compute_s: what a device does besides waiting.
        exposed_s: waits for collectives, by mesh axes.
        devices: N.
        compute_sigma: standard deviation of the logarithm of a device's time.
        network_sigma: of a collective's.
        seed: of the draws.
    """
    random = np.random.default_rng(seed)
    above = -np.expm1(-random.standard_exponential(DRAWS) / devices)
    slowest = -np.array([NormalDist().inv_cdf(share) for share in above])
    total_s = compute_s * np.exp(compute_sigma * slowest)
    for axes in sorted(exposed_s):
        total_s += exposed_s[axes] * np.exp(network_sigma * random.standard_normal(DRAWS))
    return total_s


def spread(times_s: np.ndarray) -> Spread:
    """Returns the percentiles of step times."""
    return Spread(*(float(share) for share in np.quantile(times_s, (0.50, 0.95, 0.99))))


def of(spent: Breakdown, devices: int, cluster: Cluster) -> StepVariability:
    """How much the time of a step varies.

    Args:
        spent: where the time of a step goes on a device like any other.
        devices: how many take part.
        cluster: where; says how much its devices and its network differ.
    """
    exposed_s = spent.exposed_communication
    sigmas = cluster.variability
    times_s = step_times(
        spent.total_s - sum(exposed_s.values()),
        exposed_s,
        devices,
        compute_sigma=sigmas.compute,
        network_sigma=sigmas.network,
        seed=SEED,
    )
    return StepVariability(
        kind="simulated",
        nominal_s=spent.total_s,
        **asdict(spread(times_s)),
        compute_sigma=sigmas.compute,
        network_sigma=sigmas.network,
        source={key: cluster.sources[f"variability.{key}"] for key in ("compute", "network")},
    )
