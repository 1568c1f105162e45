"""How fast a step was: samples and tokens a second, and model FLOPs as a share of the peak."""

from collections.abc import Mapping
from dataclasses import dataclass

from exajax.spmd.step import TrainStep
from exajax.spmd.workload import Workload
from exajax.train.hooks import Hooks


def rates(workload: Workload, step_time_s: float) -> dict[str, float]:
    """Returns the time of a step and what follows from it, by the names that loggers get."""
    metrics = {"step_time_s": step_time_s, "samples_per_s": workload.samples / step_time_s}
    if workload.tokens_per_sample:
        metrics["tokens_per_s"] = metrics["samples_per_s"] * workload.tokens_per_sample
    return metrics


@dataclass(frozen=True)
class Mfu(Hooks):
    """Logs `mfu`, model FLOPs utilisation: model FLOPs a second as a share of the devices' peak.

    Attributes:
        peak_flops: FLOP/s of one device, in the step's precision.
    """

    peak_flops: float

    def rates(self, step: TrainStep, step_time_s: float) -> Mapping[str, float]:
        """Returns the MFU of a step, where its workload says how many FLOPs the model takes."""
        flops = step.workload.model_flops
        if not flops:
            return {}
        return {"mfu": flops / step_time_s / (self.peak_flops * step.mesh.size)}
