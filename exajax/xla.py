"""Compiler options of a run: what is compiled ahead of time is compiled as it will run."""

from collections.abc import Mapping

OPTIONS: Mapping[str, Mapping[str, bool | int | float | str]] = {
    # Overlap collectives with compute; without it every collective is waited for at once.
    "cuda": {"xla_gpu_enable_latency_hiding_scheduler": True},
    "cpu": {},
}


MEMORY_FRACTION: Mapping[str, float] = {"cuda": 0.92, "cpu": 1.0}
"""Share of a device's memory that a run takes for its arrays: JAX's own default on a GPU is 0.75,
and the rest is for NCCL, cuBLAS and the driver."""


def compiler_options(platform: str) -> dict[str, bool | int | float | str]:
    """Returns the options to compile a step with for a platform (`cuda`, `gpu`, `cpu`)."""
    return dict(OPTIONS.get("cuda" if platform == "gpu" else platform, {}))
