"""The roofline bound of a step, and the comparison of a measured with a simulated step time."""

from dataclasses import dataclass
from typing import TypedDict


@dataclass(frozen=True)
class Roofline:
    """Lower bounds on the time of a step, from the roofline model (Williams et al. 2009).

    Attributes:
        compute_s: FLOPs / peak FLOP/s.
        memory_s: bytes moved / peak memory bandwidth.
    """

    compute_s: float
    memory_s: float

    def to_json(self) -> dict[str, float]:
        """Both bounds, and the larger one, which is the bound on the step, in s."""
        return {
            "compute": self.compute_s,
            "memory": self.memory_s,
            "bound": max(self.compute_s, self.memory_s),
        }


def roofline(flops: float, bytes_: float, peak_flops: float, bandwidth: float) -> Roofline:
    """The roofline bounds on one device's share of a step.

    Args:
        flops: FLOPs that the device computes.
        bytes_: bytes that it reads and writes.
        peak_flops: its dense peak, FLOP/s.
        bandwidth: its peak memory bandwidth, bytes/s.
    """
    return Roofline(flops / peak_flops, bytes_ / bandwidth)


class ComparisonJson(TypedDict):
    """JSON of a `Comparison`; each time says whether it was measured or simulated."""

    measured: dict[str, str | float]
    simulated: dict[str, str | float]
    error: float


@dataclass(frozen=True)
class Comparison:
    """The step time of one job on one machine, both measured and simulated.

    Attributes:
        measured_s: median of the measured steps.
        measured_p95_s: their 95th percentile.
        simulated_s: the predicted step time.
    """

    measured_s: float
    measured_p95_s: float
    simulated_s: float

    @property
    def error(self) -> float:
        """Simulated / measured - 1."""
        return self.simulated_s / self.measured_s - 1

    def to_json(self) -> ComparisonJson:
        """Both times, each marked with its kind, and the relative error."""
        return {
            "measured": {
                "kind": "measured",
                "p50_s": self.measured_s,
                "p95_s": self.measured_p95_s,
            },
            "simulated": {"kind": "simulated", "step_time_s": self.simulated_s},
            "error": self.error,
        }
