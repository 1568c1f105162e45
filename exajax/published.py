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

from exajax import stack
from exajax.cluster import Cluster, load_cluster, machine_with
from exajax.errors import InputError
from exajax.mesh import MeshSpec
from exajax.models.presets import ModelConfig
from exajax.recipe import Recipe

COLUMNS = ("source", "row_id", "layers", "hidden", "num_gpus", "global_batch", "derived_iter_s")
"""Columns that a table must have."""

NUMBERS = (
    *("derived_iter_s", "layers", "hidden", "heads", "kv_heads", "ffn", "seq", "vocab"),
    *("gpus_per_node", "num_gpus", "dp", "fsdp", "tp", "pp", "cp", "ep", "vpp_interleave"),
    *("micro_batch", "global_batch", "node_network_gbytes_per_s"),
)
"""Columns that hold numbers above 0, or nothing."""

REMATS = {
    "none": "none",
    "selective": "attention",
    "save_dots": "selective",
    "save_dots_except_mlp_wi": "save-dots-except-mlp-wi",
    "save_dots_except_mlp": "save-dots-except-mlp",
    "save_qkv": "save-qkv",
    "full": "full",
    "offload": "offload",
}
"""Ours for a table's recompute policies."""

PRECISIONS = {"bf16": "bf16", "fp16": "bf16", "fp8": "fp8"}
"""Ours for a table's types; the matrix units are as fast in fp16 as in bf16."""

FAMILIES = {"swiglu": "llama", "gelu": "gpt"}
"""Model family by its feed-forward."""

MATRICES = {"llama": 3, "gpt": 2}
"""Matrices of a family's feed-forward."""

SAME_SIZE = 0.08
"""How far the parameters of a family may be from those that a row says, for it to be the family."""


class InexpressibleError(Exception):
    """A row says too little, or something that a recipe does not have."""


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
        reason: why not.
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
    for column in NUMBERS:
        text = values.get(column, "").strip()
        try:
            good = not text or 0 < float(text) < math.inf
        except ValueError:
            good = False
        if not good:
            raise InputError(
                "--table",
                f"{path}, row {values['row_id']}, column {column}: {text!r} is no number above 0",
                "mend it, or leave the cell empty where nothing is known",
            )
    return {str(column): text for column, text in values.items()}


def _row(values: Mapping[str, str]) -> Row:
    recipe, reason = None, ""
    try:
        recipe = recipe_of(values)
    except (InexpressibleError, InputError) as error:
        reason = str(error)
    measured = _number(values, "derived_iter_s")
    network = _number(values, "node_network_gbytes_per_s")
    return Row(
        row_id=values["row_id"],
        source=values["source"],
        measured_s=measured,
        cluster=values.get("cluster", ""),
        chip=values.get("chip", ""),
        devices_per_node=int(_number(values, "gpus_per_node") or 0),
        network=network * 1e9 if network else None,
        software=values.get("precision", ""),
        recipe=recipe,
        reason=reason or ("" if measured else "it has no step time"),
    )


def recipe_of(values: Mapping[str, str]) -> Recipe:
    """Returns the recipe of a row.

    Args:
        values: the row's columns; an empty one is unknown.

    Raises:
        InexpressibleError: something that a recipe needs is unknown, or unknown to a recipe.
        InputError: the parts do not go together.
    """
    if "lora" in values.get("model", "").lower() or "lora" in values["row_id"].lower():
        raise InexpressibleError("it trains adapters alone")
    policy = values.get("recompute_policy", "") or stack.of_source(values["source"]).remat
    if policy not in REMATS:
        raise InexpressibleError(f"its recompute policy is {policy or 'unknown'}")
    if values.get("dtype") not in PRECISIONS:
        raise InexpressibleError(f"its precision is {values.get('dtype') or 'unknown'}")
    mesh, zero = layout_of(values)
    heads, seq = _count(values, "heads"), _count(values, "seq")
    model = ModelConfig(
        name=values.get("model", "") or "unnamed",
        family=family_of(values),
        layers=_count(values, "layers"),
        width=_count(values, "hidden"),
        heads=heads,
        kv_heads=_count(values, "kv_heads", heads),
        ffn=_count(values, "ffn"),
        vocab=_count(values, "vocab"),
        seq=seq,
        source=values.get("where_found", ""),
    )
    interleave = _count(values, "vpp_interleave", 1)
    return Recipe.of(
        model,
        mesh,
        uneven_stages=True,
        global_batch=_count(values, "global_batch"),
        micro_batch=_count(values, "micro_batch"),
        seq=seq,
        precision=PRECISIONS[values["dtype"]],
        remat=REMATS[policy],
        zero=zero,
        attention="unfused" if values.get("attention") == "unfused" else "auto",
        schedule="interleaved" if interleave > 1 else "1f1b",
        interleave=interleave,
        sequence_parallel=values.get("sequence_parallel") != "no",
    )


def family_of(values: Mapping[str, str]) -> str:
    """Returns the family of a row's model: by its feed-forward, or by how many parameters it has.

    Raises:
        InexpressibleError: the feed-forward is not said, and no family has so many parameters.
    """
    mlp = values.get("mlp", "")
    if mlp in FAMILIES:
        return FAMILIES[mlp]
    said = (_number(values, "params_B") or 0.0) * 1e9
    width, layers = _count(values, "hidden"), _count(values, "layers")
    heads = _count(values, "heads")
    grouped = _count(values, "kv_heads", heads) / heads
    outside = 2 * width * _count(values, "vocab") + layers * 2 * width**2 * (1 + grouped)
    for family, matrices in MATRICES.items():
        size = outside + layers * matrices * width * _count(values, "ffn")
        if not mlp and abs(size / said - 1 if said else 1.0) < SAME_SIZE:
            return family
    raise InexpressibleError(f"its feed-forward is {mlp or 'unknown'}")


def sharded(recipe: Recipe) -> bool:
    """Returns whether parameters are divided over the batch's devices."""
    return recipe.mesh.fsdp > 1 or (recipe.zero == 3 and recipe.mesh.data > 1)


def layout_of(values: Mapping[str, str]) -> tuple[MeshSpec, int]:
    """Returns the mesh of a row and the ZeRO level of its data axis.

    Where data x fsdp x tensor x pipeline x context are the devices, data replicates and fsdp
    shards; where data alone is what the rest leaves, it shards as `zero` says; data and fsdp of
    the same size, each all the devices, are one axis named twice.

    Raises:
        InexpressibleError: the columns do not multiply to the devices.
    """
    devices = _count(values, "num_gpus")
    data, fsdp = _count(values, "dp", 1), _count(values, "fsdp", 1)
    tensor, pipe, context = (_count(values, axis, 1) for axis in ("tp", "pp", "cp"))
    if data == fsdp == devices:
        data = 1
    if math.prod((data, fsdp, tensor, pipe, context)) != devices:
        raise InexpressibleError(
            f"dp {data} x fsdp {fsdp} x tp {tensor} x pp {pipe} x cp {context} is not its "
            f"{devices} devices"
        )
    mesh = MeshSpec(pipe=pipe, data=data, fsdp=fsdp, context=context, model=tensor)
    zero = values.get("zero", "")
    return mesh, int(zero) if fsdp == 1 and zero in ("0", "1", "2", "3") else 0


def _number(values: Mapping[str, str], column: str) -> float | None:
    try:
        number = float(values.get(column) or "nan")
    except ValueError:
        return None
    return number if math.isfinite(number) and number > 0 else None


def _count(values: Mapping[str, str], column: str, default: int | None = None) -> int:
    number = _number(values, column)
    if number is None and default is not None:
        return default
    if number is None or number != int(number):
        raise InexpressibleError(f"its {column} is {values.get(column) or 'unknown'}")
    return int(number)
