"""Matrix products with weights in 8-bit floating point, with flax's fp8 operations.

Factors are e4m3 and gradients e5m2 (arXiv:2209.05433). There is one scale for an array, from its
current largest value (not from earlier steps, so that there is no state besides parameters).

Relied on, in flax 0.12.8 to 0.12.12: `fp8_ops` of flax's older interface, `linen`, which is public
and no longer developed: its scales, its casts, and products that XLA turns into fp8 kernels. The
newer `nnx` has no such functions without state. A release without them fails when the model is
made with `precision` fp8 (`tests/models/test_fp8.py`).
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax.linen import fp8_ops
from jax.typing import DTypeLike

from exajax.errors import InputError

Dimensions = tuple[tuple[tuple[int, ...], tuple[int, ...]], tuple[tuple[int, ...], tuple[int, ...]]]
"""`dimension_numbers` of `jax.lax.dot_general`."""

FACTORS, GRADIENTS = jnp.float8_e4m3fn, jnp.float8_e5m2

FIRST_CAPABILITY = (8, 9)
"""Compute capability from which NVIDIA GPUs have fp8 units (CUDA C++ Programming Guide)."""


def dot_general(x: jax.Array, weight: jax.Array, dimensions: Dimensions, **_: Any) -> jax.Array:
    """Multiplies like `jax.lax.dot_general`, in fp8, forward and backward.

    Returns:
        The product in the type of `x`, accurate to the 3 bits of e4m3.
    """
    return _multiply(x, weight, dimensions)


def check(device: jax.Device) -> None:
    """Raises an `InputError` if a GPU has no fp8 units; on a CPU fp8 is emulated, and slow."""
    if device.platform != "gpu":
        return
    capability = str(getattr(device, "compute_capability", "unknown"))
    major, _, minor = capability.partition(".")
    if not (major.isdigit() and minor.isdigit()) or (int(major), int(minor)) < FIRST_CAPABILITY:
        raise InputError(
            "precision",
            f"{device.device_kind} (compute capability {capability}) has no fp8 matrix units",
            "give `precision` bf16",
        )


def _quantize(x: jax.Array, dtype: DTypeLike) -> tuple[jax.Array, jax.Array]:
    """An array as x / scale in fp8, and the scale, by which max |x| is the largest fp8 number."""
    largest = jnp.max(jnp.abs(x)).astype(jnp.float32)
    scale = fp8_ops.compute_scale(largest, 1.0, fp8_ops.get_fp8_max(dtype, jnp.float32))
    return fp8_ops.quantize(x, dtype, scale, jnp.float32), scale


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _multiply(x: jax.Array, weight: jax.Array, dimensions: Dimensions) -> jax.Array:
    return _forward(x, weight, dimensions)[0]


def _forward(x: jax.Array, weight: jax.Array, dimensions: Dimensions) -> tuple[jax.Array, Any]:
    x8, x_scale = _quantize(x, FACTORS)
    weight8, weight_scale = _quantize(weight, FACTORS)
    y = jax.lax.dot_general(x8, weight8, dimensions, preferred_element_type=x.dtype)
    y = fp8_ops.dequantize(y, y.dtype, x_scale * weight_scale)
    return y, (x8, x_scale, weight8, weight_scale)


def _backward(dimensions: Dimensions, saved: Any, dy: jax.Array) -> tuple[jax.Array, jax.Array]:
    x8, x_scale, weight8, weight_scale = saved
    dy8, dy_scale = _quantize(dy, GRADIENTS)
    # HIGHEST makes XLA accumulate in fp32; the default is faster and less precise.
    multiply: dict[str, Any] = {
        "dimension_numbers": dimensions,
        "precision": jax.lax.Precision.HIGHEST,
        "preferred_element_type": dy.dtype,
    }
    dx = fp8_ops.dot_general_transpose_lhs(dy8, x8, weight8, **multiply)
    dweight = fp8_ops.dot_general_transpose_rhs(dy8, x8, weight8, **multiply)
    return (
        fp8_ops.dequantize(dx, dy.dtype, dy_scale * weight_scale),
        fp8_ops.dequantize(dweight, dy.dtype, dy_scale * x_scale),
    )


_multiply.defvjp(_forward, _backward)
