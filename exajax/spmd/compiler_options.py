"""XLA compiler options of a train step, the same for training and for ahead-of-time compilation.

Options come and go between releases of XLA, which rejects unknown ones. `compile` leaves out those
that the installed compiler rejects, and `left_out` lists them.
"""

import logging
import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # this module is also read before JAX is imported, to set its environment
    import jax

logger = logging.getLogger(__name__)

OPTIONS: Mapping[str, Mapping[str, bool | int | float | str]] = {
    # NVIDIA's options for large language models (NVIDIA/JAX-Toolbox, docs/GPU_performance.md, and
    # rosetta/projects/maxtext/xla_flags/llama2-7b-1N8G.env).
    "cuda": {
        # Collectives overlap with compute; without it every collective is fully exposed.
        "xla_gpu_enable_latency_hiding_scheduler": True,
        # A layer's parameters are gathered during the layer before, and its gradients scattered
        # during the layer after. Double buffering unrolls the loop by two, which avoids copies.
        "xla_gpu_enable_pipelined_all_gather": True,
        "xla_gpu_enable_pipelined_reduce_scatter": True,
        "xla_gpu_enable_pipelined_all_reduce": True,
        "xla_gpu_enable_while_loop_double_buffering": True,
        # The arrays of a layer are combined into one collective.
        "xla_gpu_all_gather_combine_threshold_bytes": 1 << 30,
        "xla_gpu_all_reduce_combine_threshold_bytes": 1 << 30,
        "xla_gpu_reduce_scatter_combine_threshold_bytes": 1 << 25,
        # Matrix products run in cuBLAS.
        "xla_gpu_enable_triton_gemm": False,
        # Only what the recipe says is recomputed.
        "xla_disable_hlo_passes": "rematerialization",
    },
    "cpu": {},
}


MEMORY_FRACTION: Mapping[str, float] = {"cuda": 0.92, "cpu": 1.0}
"""Share of a device's memory that is available to arrays; NCCL, cuBLAS and the driver use the rest.
JAX's own default on a GPU is 0.75."""


def compiler_options(platform: str) -> dict[str, bool | int | float | str]:
    """Compiler options of a train step for a platform (`cuda`, `gpu`, `cpu`)."""
    return dict(OPTIONS.get("cuda" if platform == "gpu" else platform, {}))


ON = "COLLECTIVE_PIPELINING_MODE_ON"

SUCCESSORS: Mapping[str, tuple[str, str]] = {
    "xla_gpu_enable_pipelined_all_gather": ("xla_gpu_pipeline_all_gather", ON),
    "xla_gpu_enable_pipelined_reduce_scatter": ("xla_gpu_pipeline_reduce_scatter", ON),
    "xla_gpu_enable_pipelined_all_reduce": ("xla_gpu_pipeline_all_reduce", ON),
}
"""Name and value of the option that replaces another in newer XLA (openxla/xla#45836, jax 0.12)."""

_rejected: set[str] = set()
"""Options that the compiler of this process has rejected so far."""

REJECTION = re.compile(r"[Nn]o such compile option:? ?'?(xla_\w+)")
"""XLA's error message for an unknown option (xla/pjrt/pjrt_executable.cc)."""


def left_out() -> tuple[str, ...]:
    """Options that have been left out of compilations of this process, sorted.

    An option whose successor was accepted does not count as left out.
    """
    return tuple(
        sorted(
            name
            for name in _rejected - {successor for successor, _ in SUCCESSORS.values()}
            if name not in SUCCESSORS or SUCCESSORS[name][0] in _rejected
        )
    )


def compile(
    lowered: "jax.stages.Lowered", platform: str, more: Mapping[str, Any] = MappingProxyType({})
) -> "jax.stages.Compiled":
    """Compiles a lowered program with those options of its platform that the compiler accepts.

    Args:
        lowered: the program.
        platform: `cuda`, `gpu` or `cpu`.
        more: further compiler options.
    """
    options: dict[str, Any] = compiler_options(platform) | dict(more)
    while True:
        successors = dict(SUCCESSORS[name] for name in options if name in _rejected & {*SUCCESSORS})
        accepted = {k: v for k, v in (options | successors).items() if k not in _rejected}
        try:
            return lowered.compile(compiler_options=accepted or None)
        except Exception as error:  # its type depends on the version of JAX
            rejection = REJECTION.search(str(error))
            if rejection is None or rejection[1] not in accepted:
                raise
            logger.debug("the compiler has no option %s", rejection[1])
            _rejected.add(rejection[1])
