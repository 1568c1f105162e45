"""Published step times as recipes: a table of measurements, row by row.

A row that cannot be expressed says why; none is dropped.
"""

import csv
import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from exajax import published_step, stack
from exajax.cluster import Cluster, load_cluster, machine_with
from exajax.errors import InputError
from exajax.published_columns import InexpressibleError, number
from exajax.published_memory import KINDS as MEMORY_KINDS
from exajax.published_memory import MeasuredMemory, measured_memory, with_any_remat
from exajax.published_recipe import recipe_of, sharded
from exajax.recipe import Recipe

COLUMNS = ("source", "row_id", "layers", "hidden", "num_gpus", "global_batch")
"""Columns that a table must have."""

NUMBERS = (
    *("derived_iter_s", "layers", "hidden", "heads", "kv_heads", "ffn", "seq", "vocab"),
    *("gpus_per_node", "num_gpus", "dp", "fsdp", "tp", "pp", "cp", "ep", "vpp_interleave"),
    *("micro_batch", "global_batch", "node_network_gbytes_per_s"),
)
"""Columns that hold numbers above 0, or nothing."""


@dataclass(frozen=True)
class Row:
    """One published measurement.

    Attributes:
        row_id: what the table calls it.
        source: where it was published.
        measured_s: seconds of a step, None where the row has none.
        cluster: a machine of ours, or empty.
        chip: what it ran on, as we call it.
        devices_per_node: devices of a node, 0 where the row does not say.
        network: of a node, bytes/s in one direction; None where the row does not say.
        software: what the row says of precision and kernels, as written (`bf16 TE`).
        recipe: what was run, None where it cannot be expressed.
        reason: why not, or why the row has no step time.
        memory: what it measures of a device's memory, None where it measures something else.
    """

    row_id: str
    source: str
    measured_s: float | None
    cluster: str
    chip: str
    devices_per_node: int
    network: float | None
    software: str
    recipe: Recipe | None
    reason: str = ""
    memory: MeasuredMemory | None = None

    def machine(self) -> Cluster:
        """Returns the machine that it ran on, with its software stack.

        Raises:
            InputError: there is no description of it.
        """
        machine = (
            load_cluster(self.cluster)
            if self.cluster
            else machine_with(self.chip, self.devices_per_node or 8, self.network)
        )
        zero = 3 if self.recipe and sharded(self.recipe) else 0
        return dataclasses.replace(machine, stack=stack.of_source(self.source, zero))


def read_table(
    path: Path, amended: Mapping[str, Mapping[str, str]] = MappingProxyType({})
) -> list[Row]:
    """Reads a table of measurements.

    Args:
        path: a CSV file.
        amended: columns that a table leaves out and its source says elsewhere, by row.

    Raises:
        InputError: it is no such table.
    """
    try:
        with path.open(newline="") as file:
            reader = csv.DictReader(file)
            missing = [name for name in COLUMNS if name not in (reader.fieldnames or ())]
            if missing:
                raise InputError(
                    "--table", f"{path} has no column {missing[0]!r}", "give a table with it"
                )
            table = [_checked(values, path) for values in reader]
            return [_row({**values, **amended.get(values["row_id"], {})}) for values in table]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError("--table", f"cannot read {path}: {error}", "give a CSV file") from error


def _checked(values: Mapping[str | None, Any], path: Path) -> dict[str, str]:
    """Returns a row of a table; raises an `InputError` that names row and column of nonsense."""
    if None in values or None in values.values():
        raise InputError(
            "--table", f"{path}, row {values['row_id']}: too few or too many cells", "mend the row"
        )
    row = {str(column): text for column, text in values.items()}
    known = published_step.measures_a_step(row) or row.get("measured_metric") in MEMORY_KINDS
    measured = ("measured_value",) if known else ()
    for column in (*NUMBERS, *measured):
        text = row.get(column, "").strip()
        try:
            good = not text or 0 < float(text) < math.inf
        except ValueError:
            good = False
        if not good:
            raise InputError(
                "--table",
                f"{path}, row {row['row_id']}, column {column}: {text!r} is no number above 0",
                "mend it, or leave the cell empty where nothing is known",
            )
    return row


def _row(values: Mapping[str, str]) -> Row:
    recipe, measured, reasons = None, None, []
    try:
        measured = published_step.measured_s(values)
    except InexpressibleError as error:
        reasons.append(str(error))
    try:
        recipe = recipe_of(with_any_remat(values))
    except (InexpressibleError, InputError) as error:
        reasons.append(str(error))
    network = number(values, "node_network_gbytes_per_s")
    memory = measured_memory(values)  # needs a recipe and no step time
    return Row(
        row_id=values["row_id"],
        source=values["source"],
        measured_s=measured,
        cluster=values.get("cluster", ""),
        chip=values.get("chip", ""),
        devices_per_node=int(number(values, "gpus_per_node") or 0),
        network=network * 1e9 if network else None,
        software=values.get("precision", ""),
        recipe=recipe,
        reason="" if not reasons else reasons[-1] if memory else reasons[0],
        memory=memory,
    )
