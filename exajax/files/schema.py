"""Schemas of files: pydantic models, whose errors name the field and what to write instead."""

import dataclasses
import functools
from pathlib import Path
from typing import Annotated, Any, TypeVar, cast, get_args, get_type_hints

import pydantic
from pydantic import AfterValidator, AliasChoices, BaseModel, ConfigDict, Field, Strict, TypeAdapter
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from exajax.errors import nearest
from exajax.files.reading import MOST_BYTES, Malformed, parse_json, read_json, read_toml, shown

T = TypeVar("T")
M = TypeVar("M", bound=BaseModel)


class Schema(BaseModel):
    """Base class for a kind of file, or table in a file, that people write: strict.

    Unknown fields are errors and nothing is converted: an integer passes where a number is
    expected, but `"8"` and `true` do not pass as 8 and 1. Subclasses give ranges with
    `Field(ge=..., le=...)`, and lists as `Items`.
    """

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", allow_inf_nan=False)


class Record(Schema):
    """Base class for a table that exajax wrote: fields of a later version are ignored."""

    model_config = ConfigDict(strict=True, frozen=True, extra="ignore", allow_inf_nan=False)


Items = Annotated[tuple[T, ...], Strict(False)]
"""A list in the file, read as a tuple: `Items[int]`."""


def _printable(text: str) -> str:
    if not text.strip() or not text.isprintable():
        raise ValueError("is empty, or has characters that cannot be printed")
    return text


Text = Annotated[str, Field(max_length=1000), AfterValidator(_printable)]
"""Prose on one line, such as a title or a source."""

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9 ._+=,()-]*$"
Name = Annotated[str, Field(max_length=64, pattern=NAME_PATTERN)]
"""A name that is safe as part of a file name: no slash, no leading dot."""


def checked(schema: type[T], value: Any) -> T:
    """A parsed JSON or TOML value, validated and converted to its schema.

    Args:
        schema: a `Schema`, or any type that pydantic supports.
        value: the value as it was parsed.

    Raises:
        Malformed: the value does not fit; names the first field that is wrong.
    """
    try:
        if isinstance(schema, type) and issubclass(schema, BaseModel):
            return schema.model_validate(value)
        # In strict mode a dataclass accepts only an instance of itself, not a table.
        strict = not dataclasses.is_dataclass(schema)
        return cast(T, _adapter(cast(Any, schema)).validate_python(value, strict=strict or None))
    except pydantic.ValidationError as error:
        raise _malformed(_main_error(error), schema) from error
    except RecursionError:
        raise Malformed("", "is nested too deeply", "nest it less") from None


def decode_record(content: bytes, kind: type[T]) -> T:
    """The dataclass, or other value, that exajax wrote as this JSON text.

    Args:
        content: a file, or a line of one.
        kind: type that was written, any that pydantic supports; unknown fields are ignored.

    Raises:
        Malformed: the text does not fit; names the first field that is wrong.
    """
    parse_json(content)  # checks the limits on nesting, numbers and texts
    try:
        return cast(T, _adapter(cast(Any, kind)).validate_json(content, strict=True))
    except pydantic.ValidationError as error:
        raise _malformed(_main_error(error), kind) from error


@functools.cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def decode_json(schema: type[M], content: bytes) -> M:
    """A JSON text, validated and converted to its schema while it is parsed.

    Fields that a `Record` does not know are skipped without being stored or checked: for files
    whose other fields belong to other programs, and for many small texts.

    Args:
        schema: schema of the text.
        content: the text, in UTF-8.

    Raises:
        Malformed: the text is not JSON, or does not fit; names the first field that is wrong.
    """
    try:
        return schema.model_validate_json(content)
    except pydantic.ValidationError as error:
        first = error.errors(include_url=False)[0]
        if first["type"] != "json_invalid":
            raise _malformed(first, schema) from error
        problem = str(first.get("ctx", {}).get("error", first["msg"]))
        if "hex escape" in problem:
            raise Malformed(
                "", "holds half of a surrogate pair, or a \\u without its digits", "mend the text"
            ) from error
        raise Malformed("", f"is not JSON: {problem}", "give JSON in UTF-8") from error


def load(path: Path, schema: type[T], field: str, most_bytes: int = MOST_BYTES) -> T:
    """A TOML or JSON file from the user, validated and converted to its schema.

    Args:
        path: the file; `.json` is JSON, anything else TOML.
        schema: schema of the file.
        field: the option that the file was given for.
        most_bytes: size limit of such a file.

    Raises:
        InputError: the file cannot be read or does not fit; names the option, the file, the field
            and the fix.
    """
    try:
        read = read_json if path.suffix == ".json" else read_toml
        return checked(schema, read(path, most_bytes))
    except Malformed as error:
        raise error.within(field, path) from error


_EXPECTED = {
    "int": "a whole number",
    "float": "a number",
    "string": "a text",
    "bool": "true or false",
    "list": "a list",
    "tuple": "a list",
    "dict": "a table",
    "model": "a table",
    "dataclass": "a table",
    "finite": "a finite number",
}
"""The expected type in words, by the first word of pydantic's name of the error."""

_BOUNDS = {
    "greater_than_equal": ("ge", "at least"),
    "greater_than": ("gt", "more than"),
    "less_than_equal": ("le", "at most"),
    "less_than": ("lt", "less than"),
}
"""Key of the bound in pydantic's error, and the bound in words, by the name of the error."""

_UNKNOWN_FIELD = ("extra_forbidden", "unexpected_keyword_argument")
"""Pydantic's names of the error of an unknown field."""


def _main_error(error: pydantic.ValidationError) -> ErrorDetails:
    """The error to report of several: an unknown field, else the first.

    A misspelt field is both unknown and missing, and its misspelling is what the user can see.
    """
    errors = error.errors(include_url=False)
    return next((detail for detail in errors if detail["type"] in _UNKNOWN_FIELD), errors[0])


def _malformed(error: ErrorDetails, schema: Any) -> Malformed:
    kind, value, context = error["type"], error["input"], error.get("ctx", {})
    where = _where(error["loc"])
    if kind == "missing":
        return Malformed(where, "is missing", "add it")
    if kind in _UNKNOWN_FIELD:
        known = _fields_at(schema, error["loc"][:-1])
        if error["loc"][-1] in known:  # an alias, beside the name that it stands for
            return Malformed(where, "is given under two names", "leave one out")
        return Malformed(
            where, "is unknown", nearest(str(error["loc"][-1]), known) if known else "leave it out"
        )
    if kind in _BOUNDS:
        key, words = _BOUNDS[kind]
        return Malformed(where, f"is {shown(value)}", f"give {words} {context[key]}")
    if kind == "string_pattern_mismatch" and context["pattern"] == NAME_PATTERN:
        return Malformed(
            where,
            f"is {shown(value)}",
            "give a name of letters, digits, spaces and ._+=,()-, a letter or digit first",
        )
    if kind in ("literal_error", "enum"):
        return Malformed(where, f"is {shown(value)}", f"give {context['expected']}")
    if isinstance(inner := context.get("error"), Malformed):
        return Malformed(f"{where}.{inner.where}".strip("."), inner.problem, inner.fix)
    if kind in ("value_error", "assertion_error"):
        problem = str(context.get("error", error["msg"]))
        return Malformed(where, f"{shown(value)} {problem}", "mend it")
    expected = _EXPECTED.get(kind.partition("_")[0])
    if expected and kind.endswith(("_type", "_number", "_parsing", "from_float")):
        return Malformed(where, f"is {shown(value)}", f"give {expected}")
    return Malformed(where, f"is {shown(value)}", _imperative(error["msg"]))


def _fields_at(schema: Any, path: tuple[int | str, ...]) -> list[str]:
    """Names of the fields of the table at a path within a schema; empty if there is no table."""
    for part in get_args(schema):
        if names := _fields_at(part, path):
            return names
    if isinstance(schema, type) and issubclass(schema, BaseModel):
        fields = schema.model_fields
    elif dataclasses.is_dataclass(schema):
        hints = get_type_hints(schema, include_extras=True)
        fields = {name: FieldInfo.from_annotation(hint) for name, hint in hints.items()}
    else:
        return []
    named = {key: entry for name, entry in fields.items() for key in _keys(name, entry)}
    # Skip list indices and the free keys of a dict, which are not fields.
    path = next((path[i:] for i, key in enumerate(path) if key in named), ())
    return _fields_at(named[str(path[0])].annotation, path[1:]) if path else [*named]


def _keys(name: str, field: FieldInfo) -> list[str]:
    """Names that a field may have in a file, its present one first."""
    if isinstance(field.validation_alias, AliasChoices):
        return [str(choice) for choice in field.validation_alias.choices]
    return [str(field.validation_alias or name)]


def _where(path: tuple[int | str, ...]) -> str:
    text = ""
    for key in path:
        if key == "[key]":  # pydantic appends it to the path of a dict's wrong key
            continue
        text += f"[{key}]" if isinstance(key, int) else f".{key}" if text else str(key)
    return text if text.isprintable() and len(text) <= 200 else shown(text)


def _imperative(message: str) -> str:
    """Pydantic's `Input should be ...`, `String should have ...` as a fix."""
    _, should, rest = message.partition(" should ")
    return f"it should {rest}" if should else message
