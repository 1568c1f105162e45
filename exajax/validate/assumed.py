"""Assumptions that replace empty columns of a published row, described for people."""

from exajax.files.reading import shown
from exajax.machine.published_columns import Columns
from exajax.models.dimensions import ModelConfig
from exajax.validate import row_models

ONES = ("dp", "fsdp", "tp", "pp", "cp", "ep", "vpp_interleave")
"""Columns of the layout whose empty value means 1."""

OTHERS = {
    "zero": "zero = 0",
    "attention": "attention = fused where the chip has it",
    "sequence_parallel": "sequence_parallel = yes",
}
"""Assumptions for other columns."""

KNOWN = {
    "zero": ("0", "1", "2", "3", "hsdp"),
    "attention": ("flash", "unfused"),
    "sequence_parallel": ("yes", "no"),
}
"""Known values of these columns; any other value is replaced by the assumption too."""


def assumed(values: Columns, model: ModelConfig | None) -> tuple[str, ...]:
    """Assumptions about a row, each as `column = value`, with the reason if it is not obvious.

    Args:
        values: the row's columns, as in the table.
        model: the model that the row names; None if it is unknown.
    """
    missing = [f"{column} = 1" for column in ONES if _empty(values, column)]
    missing += [text for column, text in OTHERS.items() if _empty(values, column)]
    missing += [
        f"{OTHERS[column]} (its {shown(values[column])} is none of {', '.join(known)})"
        for column, known in KNOWN.items()
        if not _empty(values, column) and values[column] not in known
    ]
    if model:
        completed = row_models.completed(values, model)
        columns = [*row_models.DIMENSION_COLUMNS, "mlp"]
        missing += [
            f"{column} = {completed[column]} (of {model.name})"
            for column in columns
            if _empty(values, column)
        ]
    else:
        missing += ["kv_heads = heads"] if _empty(values, "kv_heads") else []
        missing += ["mlp by params_B"] if _empty(values, "mlp") else []
    if not (values.get("cluster") or "").strip() and _empty(values, "gpus_per_node"):
        missing.append("gpus_per_node = 8")
    if values.get("dtype") == "fp16":
        missing.append("dtype = bf16 (as fast as its fp16)")
    return tuple(missing)


def _empty(values: Columns, column: str) -> bool:
    return not (values.get(column) or "").strip()
