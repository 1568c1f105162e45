"""A model's dimensions in TOML: one schema per family, and what has to fit together.

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
"""Largest model, parameters: their bytes, with the optimizer's, are counted in 64 bits."""

Layers = Annotated[int, Field(ge=1, le=10_000)]
Heads = Annotated[int, Field(ge=1, le=65_536)]
Width = Annotated[int, Field(ge=1, le=2**24)]
Tokens = Annotated[int, Field(ge=1, le=2**24)]
Pixels = Annotated[int, Field(ge=1, le=65_536)]
Theta = Annotated[float, Field(ge=1.0, le=1e12)]
Weight = Annotated[float, Field(ge=0.0, le=1000.0)]


class _Model(Schema):
    """Dimensions of every family; those that a file leaves out are None."""

    name: Name
    source: Text
    layers: Layers
    width: Width
    heads: Heads
    kv_heads: Heads
    ffn: Width
    vocab: Tokens
    seq: Tokens


class _Gpt(_Model):
    family: Literal["gpt"]


class _Llama(_Model):
    family: Literal["llama"]
    rope_theta: Theta = 10_000.0


class _Mixtral(_Model):
    family: Literal["mixtral"]
    rope_theta: Theta = 10_000.0
    experts: Heads
    top_k: Heads
    moe_every: Layers = 1
    balance: Weight = ModelConfig.balance


class _Vit(_Model):
    family: Literal["vit"]
    image: Pixels
    patch: Pixels
    channels: Pixels


SCHEMAS: dict[str, type[_Model]] = {
    "gpt": _Gpt,
    "llama": _Llama,
    "mixtral": _Mixtral,
    "vit": _Vit,
}

_UNGROUPED = ("gpt", "vit")
"""Families whose key and value heads are as many as the query heads."""


def read_model(path: Path) -> ModelConfig:
    """Returns the model of a TOML file; its name and source are by default the file's own.

    Raises:
        Malformed: the file cannot be read, or is no model's.
    """
    table = read_toml(path)
    return of_table({"name": name_of(path.stem), "source": name_of(path.name)} | table)


def of_record(recorded: Any) -> ModelConfig:
    """Returns the model that a run recorded, every field of `ModelConfig` written out.

    Raises:
        Malformed: it is no model's.
    """
    if not isinstance(recorded, dict):
        raise Malformed("model", f"is {shown(recorded)}", "give a table")
    schema = SCHEMAS.get(str(recorded.get("family")), _Model)
    unset = {
        entry.name: entry.default
        for entry in dataclasses.fields(ModelConfig)
        if entry.name not in schema.model_fields
    }
    mine = {k: v for k, v in recorded.items() if k not in unset or v != unset[k]}
    if not mine.get("source"):
        mine["source"] = "unknown"
    return dataclasses.replace(of_table(mine), source=str(recorded.get("source", "")))


def of_table(table: dict[str, Any]) -> ModelConfig:
    """Returns the model that a table describes.

    Args:
        table: fields of `ModelConfig`, `name` and `source` among them. Without `kv_heads` there
            are as many as `heads`, and the `seq` of a vit follows from its image.

    Raises:
        Malformed: names the field that is missing, unknown, out of range, or does not go with
            the others.
    """
    schema = _schema_of(table)
    if "heads" in table:
        table = {"kv_heads": table["heads"]} | table
    if schema is _Vit:
        table = {"seq": _patches(table)} | table
    config = ModelConfig(**checked(schema, table).model_dump())
    _check_heads(config)
    _check_experts(config)
    if config.family == "vit" and config.seq != _patches(table):
        raise Malformed(
            "seq",
            f"is {config.seq}, which is not the number of patches",
            f"leave it out, or give {_patches(table)}",
        )
    if config.parameters > MOST_PARAMETERS:
        raise Malformed(
            "", f"has {config.parameters:.1e} parameters", f"give at most {MOST_PARAMETERS:.0e}"
        )
    return config


def name_of(text: str) -> str:
    """Returns a file's or folder's own name as a model's, with `-` for what no name may have."""
    return re.sub(r"[^A-Za-z0-9 ._+=,()-]", "-", text).lstrip(" ._+=,()-")[:64].strip() or "model"


def _schema_of(table: dict[str, Any]) -> type[_Model]:
    """Returns the schema of a table's family; refuses by name what another family has."""
    if "family" not in table:
        raise Malformed("family", "is missing", f"give one of {', '.join(SCHEMAS)}")
    family = table["family"]
    if not isinstance(family, str):
        raise Malformed("family", f"is {shown(family)}", f"give one of {', '.join(SCHEMAS)}")
    if family not in SCHEMAS:
        raise Malformed("family", f"is {shown(family)}", nearest(family, SCHEMAS))
    schema = SCHEMAS[family]
    for key in table:
        having = [name for name, other in SCHEMAS.items() if key in other.model_fields]
        if having and key not in schema.model_fields:
            raise Malformed(
                key,
                f"is nothing that a {family} has",
                f"leave it out, or give family {' or '.join(having)}",
            )
    return schema


def _patches(table: dict[str, Any]) -> int:
    """Returns how many patches the images of a vit have."""
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
