"""Reader of tables of published measurements: every row has a recipe, or a reason why not."""

import csv
import dataclasses
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from exajax.errors import InputError
from exajax.files.reading import Malformed, read_bytes, shown, shown_path
from exajax.machine import software_of_rows
from exajax.machine.cluster import Cluster, load_cluster, machine_with
from exajax.machine.published_columns import InexpressibleError, positive_number
from exajax.machine.software import SoftwareProfile
from exajax.recipe.recipe import Recipe
from exajax.validate import assumed as published_assumed
from exajax.validate import row_flops, row_models, row_step
from exajax.validate.row_memory import (
    KIND_OF_METRIC,
    MeasuredMemory,
    measured_memory,
    with_any_remat,
)
from exajax.validate.row_recipe import assumed_policy, recipe_of, sharded

MOST_BYTES = 64 << 20
"""Limit on the size of a table."""

MOST_ROWS = 100_000

COLUMNS = ("source", "row_id", "layers", "hidden", "num_gpus", "global_batch")
"""Required columns of a table."""

_SIZE, _DEVICES, _BATCH = 2**24, 2**24, 10**9
NUMBERS = {
    "derived_iter_s": 1e9,
    "layers": 10_000,
    "params_B": 1e6,
    **dict.fromkeys(("hidden", "heads", "kv_heads", "ffn", "seq", "vocab"), _SIZE),
    **dict.fromkeys(("gpus_per_node", "num_gpus", "dp", "fsdp", "tp", "pp", "cp", "ep"), _DEVICES),
    **dict.fromkeys(("vpp_interleave", "micro_batch", "global_batch"), _BATCH),
    "node_network_gbytes_per_s": 1e9,
}
"""Largest value of each column that contains a positive number or nothing."""

MOST_MEASURED = 1e18
"""Largest number of `measured_value`."""


@dataclass(frozen=True)
class PublishedRow:
    """One published measurement.

    Attributes:
        row_id: its identifier in the table.
        source: its publication.
        measured_s: seconds of a step; None if the row has no step time.
        cluster: name of a cluster that comes with exajax, or empty.
        chip: name of a chip that comes with exajax.
        devices_per_node: devices of a node; 0 if unknown.
        network: network bandwidth of a node, bytes/s in one direction; None if unknown.
        precision: precision and kernels as the row states them (`bf16 TE`).
        software: name of its software profile; empty if its source determines it.
        recipe: its recipe; None if a recipe cannot express it.
        reason: why it has no recipe, or no step time; else empty.
        memory: its measurement of memory; None if it has none.
        assumed: assumptions that replace empty columns, for people.
    """

    row_id: str
    source: str
    measured_s: float | None
    cluster: str
    chip: str
    devices_per_node: int
    network: float | None
    precision: str
    software: str
    recipe: Recipe | None
    reason: str = ""
    memory: MeasuredMemory | None = None
    assumed: tuple[str, ...] = ()

    @property
    def profile(self) -> SoftwareProfile:
        """The software profile that prices it."""
        zero = 3 if self.recipe and sharded(self.recipe) else 0
        return software_of_rows.profile_of(self.source, self.software, zero)

    @property
    def unvalidated(self) -> tuple[str, ...]:
        """Its chip and its software profile where no measurement in exajax has them."""
        return software_of_rows.unvalidated(self.chip, self.profile.name)

    def machine(self) -> Cluster:
        """The cluster that it ran on, with its software profile.

        Raises:
            InputError: there is no description of the cluster.
        """
        machine = (
            load_cluster(self.cluster)
            if self.cluster
            else machine_with(self.chip, self.devices_per_node or 8, self.network)
        )
        return dataclasses.replace(machine, software=self.profile)


def read_table(
    path: Path, amended: Mapping[str, Mapping[str, str]] = MappingProxyType({})
) -> list[PublishedRow]:
    """The rows of a table of measurements.

    Args:
        path: a CSV file.
        amended: columns from elsewhere in the source, by identifier of the row.

    Raises:
        InputError: the file is not such a table.
    """
    try:
        text = read_bytes(path, MOST_BYTES).decode("utf-8-sig")
        reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=_delimiter(text))
        _check_columns(reader.fieldnames or ())
        table = [_check_row(values, number) for number, values in enumerate(reader, 1)]
        return [_published_row({**values, **amended.get(values["row_id"], {})}) for values in table]
    except Malformed as error:
        raise error.within("table", path) from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(
            "table", f"{shown_path(path)} cannot be read: {error}", "give a CSV file in UTF-8"
        ) from error


def _delimiter(text: str) -> str:
    """The delimiter of a table: a comma, unless its header has another."""
    header = text.partition("\n")[0]
    return next((mark for mark in ",;\t" if f"source{mark}" in header.replace('"', "")), ",")


def _check_columns(columns: Sequence[str]) -> None:
    for name in COLUMNS:
        if name not in columns:
            raise Malformed("", f"has no column {name!r}", "give a table with it")
    for name in columns:
        if columns.count(name) > 1:
            raise Malformed("", f"has two columns {shown(name)}", "leave one out")


def _check_row(values: Mapping[str | None, Any], number: int) -> dict[str, str]:
    """The checked columns of a row; raises a `Malformed` that names the row and the column."""
    name = values.get("row_id") or number
    where = f"row {name if str(name).isprintable() else number}"
    if number > MOST_ROWS:
        raise Malformed("", f"has more than {MOST_ROWS} rows", "give several tables")
    if None in values or None in values.values():
        raise Malformed(where, "has too few or too many cells", "mend the row")
    row = {str(column): text.strip() for column, text in values.items()}
    known = (
        row_step.measures_a_step(row)
        or row_flops.counts_flops(row)
        or row.get("measured_metric") in KIND_OF_METRIC
    )
    measured = {"measured_value": MOST_MEASURED} if known else {}
    for column, most in (NUMBERS | measured).items():
        text = row.get(column, "")
        if text and not _is_number(text, most):
            raise Malformed(
                f"{where}, column {column}:",
                f"{shown(text)} is no number above 0 and up to {most:g}",
                "mend it, or leave the cell empty where nothing is known",
            )
    try:
        software_of_rows.check(row)
        row_flops.check(row)
    except Malformed as error:
        raise Malformed(f"{where}, column {error.where}:", error.problem, error.fix) from error
    return row


def _is_number(text: str, most: float) -> bool:
    try:
        return text.isascii() and "_" not in text and 1e-12 <= float(text) <= most
    except ValueError:
        return False


def _published_row(values: Mapping[str, str]) -> PublishedRow:
    recipe, reason = None, ""
    try:
        recipe = recipe_of(with_any_remat(values))
    except (InexpressibleError, InputError) as error:
        reason = str(error)
    network = positive_number(values, "node_network_gbytes_per_s")
    row = PublishedRow(
        row_id=values["row_id"],
        source=values["source"],
        measured_s=None,
        cluster=values.get("cluster", ""),
        chip=values.get("chip", ""),
        devices_per_node=int(positive_number(values, "gpus_per_node") or 0),
        network=network * 1e9 if network else None,
        precision=values.get("precision", ""),
        software=values.get("software", ""),
        recipe=recipe,
        reason=reason,
        memory=measured_memory(values),  # needs a recipe and no step time
        assumed=_assumed(values),
    )
    return _timed(row, values)


def _timed(row: PublishedRow, values: Mapping[str, str]) -> PublishedRow:
    """A row with its step time, or the reason why it has none."""
    try:
        if positive_number(values, "derived_iter_s") or not row_flops.counts_flops(values):
            return dataclasses.replace(row, measured_s=row_step.measured_s(values))
        if row.recipe is None:  # whose FLOPs are unknown
            return row
        precision = row.recipe.precision
        seconds, convention = row_flops.measured_s(
            values, row.recipe, lambda: row.machine().chip.peak(precision)
        )
        return dataclasses.replace(row, measured_s=seconds, assumed=(*row.assumed, convention))
    except (InexpressibleError, InputError) as error:
        # What hinders a figure of memory is its recipe's reason.
        reason = row.reason if row.memory and row.reason else str(error)
        return dataclasses.replace(row, reason=reason)


def _assumed(values: Mapping[str, str]) -> tuple[str, ...]:
    try:
        model = row_models.named(values)
    except InexpressibleError:  # which is the row's reason
        model = None
    software = software_of_rows.assumed(values["source"], values.get("software", ""))
    columns = published_assumed.assumed(values, model)
    policy = assumed_policy(values)
    return (*([software] if software else []), *columns, *([policy] if policy else []))
