"""Compiler options of a run: what is compiled ahead of time is compiled as it will run.

Options come and go between releases of XLA, which refuses those that it does not know. The compiler
itself is asked: what it refuses is left out, and recorded.
"""

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # what is set before JAX is imported is read here
    import jax

OPTIONS: Mapping[str, Mapping[str, bool | int | float | str]] = {
    # What NVIDIA runs large language models with (NVIDIA/JAX-Toolbox, docs/GPU_performance.md, and
    # rosetta/projects/maxtext/xla_flags/llama2-7b-1N8G.env).
    "cuda": {
        # Collectives run beside compute; without it every one is waited for at once.
        "xla_gpu_enable_latency_hiding_scheduler": True,
        # The parameters of a layer are gathered during the one before, gradients are scattered
        # during the one behind; two trips of the loop are one, so that neither has to be copied.
        "xla_gpu_enable_pipelined_all_gather": True,
        "xla_gpu_enable_pipelined_reduce_scatter": True,
        "xla_gpu_enable_pipelined_all_reduce": True,
        "xla_gpu_enable_while_loop_double_buffering": True,
        # One collective for the arrays of a layer, and not one each.
        "xla_gpu_all_gather_combine_threshold_bytes": 1 << 30,
        "xla_gpu_all_reduce_combine_threshold_bytes": 1 << 30,
        "xla_gpu_reduce_scatter_combine_threshold_bytes": 1 << 25,
        # Matrix products are cuBLAS's.
        "xla_gpu_enable_triton_gemm": False,
        # What is recomputed is what the recipe says, and nothing besides.
        "xla_disable_hlo_passes": "rematerialization",
    },
    "cpu": {},
}


MEMORY_FRACTION: Mapping[str, float] = {"cuda": 0.92, "cpu": 1.0}
"""Share of a device's memory that a run takes for its arrays: JAX's own default on a GPU is 0.75,
and the rest is for NCCL, cuBLAS and the driver."""


def compiler_options(platform: str) -> dict[str, bool | int | float | str]:
    """Returns the options to compile a step with for a platform (`cuda`, `gpu`, `cpu`)."""
    return dict(OPTIONS.get("cuda" if platform == "gpu" else platform, {}))


ON = "COLLECTIVE_PIPELINING_MODE_ON"

SUCCESSORS: Mapping[str, tuple[str, str]] = {
    "xla_gpu_enable_pipelined_all_gather": ("xla_gpu_pipeline_all_gather", ON),
    "xla_gpu_enable_pipelined_reduce_scatter": ("xla_gpu_pipeline_reduce_scatter", ON),
    "xla_gpu_enable_pipelined_all_reduce": ("xla_gpu_pipeline_all_reduce", ON),
}
"""What newer releases call an option, and its value there: openxla/xla#45836, in jax 0.12."""

_UNKNOWN: set[str] = set()
"""Options that the compiler of this process has refused."""

REFUSED = re.compile(r"[Nn]o such compile option:? ?'?(xla_\w+)")
"""What XLA says of an option that it does not know (xla/pjrt/pjrt_executable.cc)."""


def left_out() -> tuple[str, ...]:
    """Returns the options that the compiler does not know, as far as it has been asked.

    An option whose successor it knows is not left out.
    """
    return tuple(
        sorted(
            name
            for name in _UNKNOWN - {successor for successor, _ in SUCCESSORS.values()}
            if name not in SUCCESSORS or SUCCESSORS[name][0] in _UNKNOWN
        )
    )


def compile(
    lowered: "jax.stages.Lowered", platform: str, more: Mapping[str, Any] = MappingProxyType({})
) -> "jax.stages.Compiled":
    """Compiles a lowered program with the options of its platform that the compiler knows.

    Args:
        lowered: the program.
        platform: `cuda`, `gpu` or `cpu`.
        more: further options.
    """
    options: dict[str, Any] = compiler_options(platform) | dict(more)
    while True:
        successors = dict(SUCCESSORS[name] for name in options if name in _UNKNOWN & {*SUCCESSORS})
        known = {k: v for k, v in (options | successors).items() if k not in _UNKNOWN}
        try:
            return lowered.compile(compiler_options=known or None)
        except Exception as error:  # of JAX and XLA, by version
            refused = REFUSED.search(str(error))
            if refused is None or refused[1] not in known:
                raise
            _UNKNOWN.add(refused[1])
