"""Reader of a model's dimensions from TOML: one schema per family, and checks across fields.

family = "llama"
layers = 2
width = 64
heads = 4
kv_heads = 2
ffn = 128
vocab = 256
seq = 32
"""

import dataclasses
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from exajax.errors import nearest
from exajax.files.reading import Malformed, read_toml, shown
from exajax.files.schema import Name, Schema, Text, checked
from exajax.models.dimensions import ModelConfig

MOST_PARAMETERS = 10**15
"""Limit on parameters: their bytes, with the optimizer's, must fit 64 bits."""

Layers = Annotated[int, Field(ge=1, le=10_000)]
Heads = Annotated[int, Field(ge=1, le=65_536)]
Width = Annotated[int, Field(ge=1, le=2**24)]
Tokens = Annotated[int, Field(ge=1, le=2**24)]
Pixels = Annotated[int, Field(ge=1, le=65_536)]
Theta = Annotated[float, Field(ge=1.0, le=1e12)]
Weight = Annotated[float, Field(ge=0.0, le=1000.0)]


class _ModelTable(Schema):
    """Fields of every family."""

    name: Name
    source: Text
    layers: Layers
    width: Width
    heads: Heads
    kv_heads: Heads
    ffn: Width
    vocab: Tokens
    seq: Tokens


class _GptTable(_ModelTable):
    family: Literal["gpt"]


class _LlamaTable(_ModelTable):
    family: Literal["llama"]
    rope_theta: Theta = 10_000.0


class _MixtralTable(_ModelTable):
    family: Literal["mixtral"]
    rope_theta: Theta = 10_000.0
    experts: Heads
    top_k: Heads
    moe_every: Layers = 1
    balance: Weight = ModelConfig.balance


class _VitTable(_ModelTable):
    family: Literal["vit"]
    image: Pixels
    patch: Pixels
    channels: Pixels


SCHEMAS: dict[str, type[_ModelTable]] = {
    "gpt": _GptTable,
    "llama": _LlamaTable,
    "mixtral": _MixtralTable,
    "vit": _VitTable,
}

_UNGROUPED = ("gpt", "vit")
"""Families with as many key and value heads as query heads."""


def read_model(path: Path) -> ModelConfig:
    """The model that a TOML file describes; its name and source default to the file's name.

    Raises:
        Malformed: the file cannot be read, or does not describe a model.
    """
    table = read_toml(path)
    return model_of_table({"name": valid_name(path.stem), "source": valid_name(path.name)} | table)


def model_of_record(recorded: Any) -> ModelConfig:
    """The model that a run recorded as a table of all fields of `ModelConfig`.

    Raises:
        Malformed: the table does not describe a model.
    """
    if not isinstance(recorded, dict):
        raise Malformed("model", f"is {shown(recorded)}", "give a table")
    schema = SCHEMAS.get(str(recorded.get("family")), _ModelTable)
    unset = {
        entry.name: entry.default
        for entry in dataclasses.fields(ModelConfig)
        if entry.name not in schema.model_fields
    }
    fields = {k: v for k, v in recorded.items() if k not in unset or v != unset[k]}
    if not fields.get("source"):
        fields["source"] = "unknown"
    return dataclasses.replace(model_of_table(fields), source=str(recorded.get("source", "")))


def model_of_table(table: dict[str, Any]) -> ModelConfig:
    """The model that a table describes.

    Args:
        table: fields of `ModelConfig`, with `name` and `source`. `kv_heads` defaults to `heads`,
            and the `seq` of a vit to its number of patches.

    Raises:
        Malformed: a field is missing, unknown, out of range, or does not fit the others.
    """
    schema = _schema_of(table)
    if "heads" in table:
        table = {"kv_heads": table["heads"]} | table
    if schema is _VitTable:
        table = {"seq": _count_patches(table)} | table
    config = ModelConfig(**checked(schema, table).model_dump())
    _check_heads(config)
    _check_experts(config)
    if config.family == "vit" and config.seq != _count_patches(table):
        raise Malformed(
            "seq",
            f"is {config.seq}, which is not the number of patches",
            f"leave it out, or give {_count_patches(table)}",
        )
    if config.parameters > MOST_PARAMETERS:
        raise Malformed(
            "", f"has {config.parameters:.1e} parameters", f"give at most {MOST_PARAMETERS:.0e}"
        )
    return config


def valid_name(text: str) -> str:
    """A text as a valid name of a model, with `-` for every character that is not allowed."""
    return re.sub(r"[^A-Za-z0-9 ._+=,()-]", "-", text).lstrip(" ._+=,()-")[:64].strip() or "model"


def _schema_of(table: dict[str, Any]) -> type[_ModelTable]:
    """The schema of a table's family.

    Raises:
        Malformed: there is no such family, or a field belongs to another one.
    """
    if "family" not in table:
        raise Malformed("family", "is missing", f"give one of {', '.join(SCHEMAS)}")
    family = table["family"]
    if not isinstance(family, str):
        raise Malformed("family", f"is {shown(family)}", f"give one of {', '.join(SCHEMAS)}")
    if family not in SCHEMAS:
        raise Malformed("family", f"is {shown(family)}", nearest(family, SCHEMAS))
    schema = SCHEMAS[family]
    for key in table:
        owners = [name for name, other in SCHEMAS.items() if key in other.model_fields]
        if owners and key not in schema.model_fields:
            raise Malformed(
                key,
                f"is nothing that a {family} has",
                f"leave it out, or give family {' or '.join(owners)}",
            )
    return schema


def _count_patches(table: dict[str, Any]) -> int:
    """Number of patches of an image of a vit; raises `Malformed` if they do not fit it."""
    sizes: list[Any] = [table.get(key) for key in ("image", "patch", "channels")]
    image, patch, _ = sizes
    if any(type(size) is not int or not 1 <= size <= 65_536 for size in sizes) or image % patch:
        raise Malformed(
            "image, patch, channels",
            f"are {', '.join(map(shown, sizes))}",
            "give a vit all three, from 1 to 65536, and an image that the patch divides",
        )
    return int(image // patch) ** 2


def _check_heads(config: ModelConfig) -> None:
    if config.width % config.heads or config.heads % config.kv_heads:
        raise Malformed(
            "heads",
            f"is {config.heads}, width {config.width}, kv_heads {config.kv_heads}",
            "make heads divide width and kv_heads divide heads",
        )
    if config.family in _UNGROUPED and config.kv_heads != config.heads:
        raise Malformed(
            "kv_heads",
            f"is {config.kv_heads}, and a {config.family} has as many as its {config.heads} heads",
            "leave it out, or give family llama",
        )
    if config.family not in _UNGROUPED and config.head_dim % 2:
        raise Malformed(
            "heads",
            f"is {config.heads}, so a head has {config.head_dim} of the {config.width} numbers",
            "make width / heads even: rotary positions turn pairs of them",
        )


def _check_experts(config: ModelConfig) -> None:
    if config.top_k > config.experts:
        raise Malformed(
            "top_k",
            f"is {config.top_k} of {config.experts} experts",
            "give a top_k from 1 to experts",
        )
    if config.layers % config.moe_every:
        raise Malformed(
            "moe_every",
            f"is {config.moe_every}, and does not divide {config.layers} layers",
            "make moe_every divide layers",
        )
