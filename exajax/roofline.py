"""Where both roads meet: the roofline's least time of a step, and measured against simulated."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Roofline:
    """The least time that a step can take on perfect hardware (Williams et al. 2009).

    Attributes:
        compute_s: FLOPs over the peak.
        memory_s: bytes over the peak bandwidth.
    """

    compute_s: float
    memory_s: float

    def to_json(self) -> dict[str, float]:
        """Returns both roofs and the higher one."""
        return {
            "compute": self.compute_s,
            "memory": self.memory_s,
            "bound": max(self.compute_s, self.memory_s),
        }


def roofline(flops: float, bytes_: float, peak_flops: float, bandwidth: float) -> Roofline:
    """Returns the roofs over one device's share of a step.

    Args:
        flops: FLOPs of one device.
        bytes_: bytes one device reads and writes.
        peak_flops: its dense peak, FLOP/s.
        bandwidth: its peak memory bandwidth, bytes/s.
    """
    return Roofline(flops / peak_flops, bytes_ / bandwidth)


@dataclass(frozen=True)
class Comparison:
    """One step time, measured and simulated, of the same job on the same machine.

    Attributes:
        measured_s: median of the measured steps.
        measured_p95_s: 95th percentile.
        simulated_s: what was predicted.
    """

    measured_s: float
    measured_p95_s: float
    simulated_s: float

    @property
    def error(self) -> float:
        """Simulated / measured - 1."""
        return self.simulated_s / self.measured_s - 1

    def to_json(self) -> dict[str, Any]:
        """Returns both times, each with its kind, and the error."""
        return {
            "measured": {
                "kind": "measured",
                "p50_s": self.measured_s,
                "p95_s": self.measured_p95_s,
            },
            "simulated": {"kind": "simulated", "step_time_s": self.simulated_s},
            "error": self.error,
        }
