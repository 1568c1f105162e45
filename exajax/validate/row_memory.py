"""Memory measurements of published rows: bytes of a device, and what they include."""

from typing import NamedTuple

from exajax.machine.published_columns import Columns, positive_number

KIND_OF_METRIC = {
    "peak_memory_allocated": "total",
    "peak_memory": "total",
    "activation_memory": "activations",
    "param_optimizer_memory": "state",
}
"""What each metric includes: everything at the peak, activations alone, or the parameters of blocks
with gradients and optimizer state."""

UNITS = {"GiB": 2.0**30, "MiB": 2.0**20, "GB": 1e9, "MB": 1e6, "B": 1.0}


class MeasuredMemory(NamedTuple):
    """A published measurement of memory.

    Attributes:
        kind: what it includes, a value of `KIND_OF_METRIC`.
        bytes: bytes of one device.
    """

    kind: str
    bytes: float


def measured_memory(values: Columns) -> MeasuredMemory | None:
    """The memory that a row measures; None if it measures something else."""
    kind, unit = (
        KIND_OF_METRIC.get(values.get("measured_metric", "")),
        UNITS.get(values.get("unit", "")),
    )
    value = positive_number(values, "measured_value")
    return MeasuredMemory(kind, value * unit) if kind and unit and value else None


def with_any_remat(values: Columns) -> Columns:
    """A row's columns, with any remat policy if it measures only state and names none.

    Recomputation does not affect parameters and optimizer state.
    """
    memory = measured_memory(values)
    if memory and memory.kind == "state" and not values.get("recompute_policy"):
        return {**values, "recompute_policy": "full"}
    return values
