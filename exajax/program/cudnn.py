"""Fused attention for GPUs, lowered where no cuDNN is installed.

JAX asks the installed library for its version before it emits the call, and refuses without one.
Compiling for a described device needs none: the version is the one of the target. Relied on, in jax
0.10.2 to 0.12.0: `jax._src.cudnn.fused_attention_stablehlo.check_cudnn_version` returns the version
as one number, raises a `RuntimeError` where there is none, and is looked up in its module at every
call. A release that moves it fails with an `AttributeError`, or with JAX's own "cuDNN is not
detected", at the first step with flash attention that is compiled for a GPU
(`tests/program/test_small_programs.py`).
"""

import contextlib
from collections.abc import Iterator
from typing import Any

from jax._src.cudnn import fused_attention_stablehlo as fused

from exajax.program import described_devices


@contextlib.contextmanager
def assumed() -> Iterator[None]:
    """Context in which cuDNN seems to have the version of described devices, if none is installed.

    The version of an installed library is not changed.
    """
    major, minor, patch = described_devices.CUDNN
    probe: Any = fused.check_cudnn_version

    def installed_or_assumed() -> int:
        try:
            return int(probe())
        except RuntimeError:
            return major * 10_000 + minor * 100 + patch

    fused.check_cudnn_version = installed_or_assumed
    try:
        yield
    finally:
        fused.check_cudnn_version = probe
