"""Bytes of a device as published rows measure them, and what of its memory they are."""

from typing import NamedTuple

from exajax.machine.published_columns import Columns, positive_number

KINDS = {
    "peak_memory_allocated": "total",
    "peak_memory": "total",
    "activation_memory": "activations",
    "param_optimizer_memory": "state",
}
"""What a metric is of: everything at the peak, activations alone, or the parameters of blocks with
gradients and optimizer."""

UNITS = {"GiB": 2.0**30, "MiB": 2.0**20, "GB": 1e9, "MB": 1e6, "B": 1.0}


class MeasuredMemory(NamedTuple):
    """A published figure of memory.

    Attributes:
        kind: of `KINDS`.
        bytes: of one device.
    """

    kind: str
    bytes: float


def measured_memory(values: Columns) -> MeasuredMemory | None:
    """Returns the memory that a row measures, None where it measures something else."""
    kind, unit = KINDS.get(values.get("measured_metric", "")), UNITS.get(values.get("unit", ""))
    value = positive_number(values, "measured_value")
    return MeasuredMemory(kind, value * unit) if kind and unit and value else None


def with_any_remat(values: Columns) -> Columns:
    """Returns a row's columns, and for one of state alone a policy where none is said.

    What is recomputed is nothing to parameters and optimizer.
    """
    memory = measured_memory(values)
    if memory and memory.kind == "state" and not values.get("recompute_policy"):
        return {**values, "recompute_policy": "full"}
    return values
