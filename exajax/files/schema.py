"""What a kind of file has to look like, checked by pydantic, with errors to act on."""

import dataclasses
import functools
from pathlib import Path
from typing import Annotated, Any, TypeVar, cast, get_args, get_type_hints

import pydantic
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, Strict, TypeAdapter
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from exajax.errors import nearest
from exajax.files.reading import MOST_BYTES, Malformed, parse_json, read_json, read_toml, shown

T = TypeVar("T")
M = TypeVar("M", bound=BaseModel)


class Schema(BaseModel):
    """A kind of file, or of table in one, that people write: nothing unknown, nothing converted.

    A whole number passes where a number is expected; `"8"` and `true` do not pass as 8 and 1.
    Subclass it for every kind of file, with `Field(ge=..., le=...)` ranges, and `Items` for lists.
    """

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", allow_inf_nan=False)


class Record(Schema):
    """A table that this program wrote, perhaps in a later version: unknown fields are ignored."""

    model_config = ConfigDict(strict=True, frozen=True, extra="ignore", allow_inf_nan=False)


Items = Annotated[tuple[T, ...], Strict(False)]
"""A list in the file, a tuple here: `Items[int]`."""


def _printable(text: str) -> str:
    if not text.strip() or not text.isprintable():
        raise ValueError("is empty, or has characters that cannot be printed")
    return text


Text = Annotated[str, Field(max_length=1000), AfterValidator(_printable)]
"""Some words for people, on one line: a title, a source."""

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9 ._+=,()-]*$"
Name = Annotated[str, Field(max_length=64, pattern=NAME_PATTERN)]
"""What something is called, safe as part of a file's name: no slash, no leading dot."""


def checked(schema: type[T], value: Any) -> T:
    """Returns a plain value as its schema's type.

    Args:
        schema: a `Schema`, or any type that pydantic knows.
        value: what stood in the file.

    Raises:
        Malformed: it is not; names the first field that is wrong.
    """
    try:
        if isinstance(schema, type) and issubclass(schema, BaseModel):
            return schema.model_validate(value)
        strict = not dataclasses.is_dataclass(schema)  # which would refuse tables, wanting objects
        return cast(T, _adapter(cast(Any, schema)).validate_python(value, strict=strict or None))
    except pydantic.ValidationError as error:
        raise _malformed(_telling(error), schema) from error
    except RecursionError:
        raise Malformed("", "is nested too deeply", "nest it less") from None


def record(content: bytes, kind: type[T]) -> T:
    """Returns JSON that this program wrote, as the dataclass or type that it was written from.

    Args:
        content: of a file, or a line of one.
        kind: any type that pydantic knows; fields that it does not have are ignored.

    Raises:
        Malformed: it is something else; names the first field that is wrong.
    """
    parse_json(content)  # the bounds
    try:
        return cast(T, _adapter(cast(Any, kind)).validate_json(content, strict=True))
    except pydantic.ValidationError as error:
        raise _malformed(_telling(error), kind) from error


@functools.cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def parsed(schema: type[M], content: bytes) -> M:
    """Returns a JSON text as its schema's type.

    What a `Record` does not know is passed over where it stands, neither kept in memory nor judged:
    for files whose other fields are not ours, and for many small texts.

    Args:
        schema: what stands in the text.
        content: the text, in UTF-8.

    Raises:
        Malformed: it is not JSON, or the first field that is wrong.
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
    """Returns a TOML or JSON file that a person gave, as its schema's type.

    Args:
        path: the file; `.json` is JSON, anything else TOML.
        schema: its kind.
        field: the flag or field that it was given with.
        most_bytes: size from which on it cannot be of that kind.

    Raises:
        InputError: it cannot be read or is not of that kind; names the flag, the file, the field
            and the fix.
    """
    try:
        read = read_json if path.suffix == ".json" else read_toml
        return checked(schema, read(path, most_bytes))
    except Malformed as error:
        raise error.within(field, path) from error


_WANTED = {
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
"""What to give instead, by the first word of pydantic's name for a wrong type."""

_BOUNDS = {
    "greater_than_equal": ("ge", "at least"),
    "greater_than": ("gt", "more than"),
    "less_than_equal": ("le", "at most"),
    "less_than": ("lt", "less than"),
}


_UNKNOWN = ("extra_forbidden", "unexpected_keyword_argument")


def _telling(error: pydantic.ValidationError) -> ErrorDetails:
    """Returns the first error, or of a misspelt field that it is unknown, not what is missing."""
    errors = error.errors(include_url=False)
    return next((one for one in errors if one["type"] in _UNKNOWN), errors[0])


def _malformed(error: ErrorDetails, schema: Any) -> Malformed:
    kind, value, context = error["type"], error["input"], error.get("ctx", {})
    where = _where(error["loc"])
    if kind == "missing":
        return Malformed(where, "is missing", "add it")
    if kind in _UNKNOWN:
        known = _fields_at(schema, error["loc"][:-1])
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
    wanted = _WANTED.get(kind.partition("_")[0])
    if wanted and kind.endswith(("_type", "_number", "_parsing", "from_float")):
        return Malformed(where, f"is {shown(value)}", f"give {wanted}")
    return Malformed(where, f"is {shown(value)}", _imperative(error["msg"]))


def _fields_at(schema: Any, path: tuple[int | str, ...]) -> list[str]:
    """Returns the names of the fields of the table at a path; none where it is no such table."""
    for part in get_args(schema):
        if found := _fields_at(part, path):
            return found
    if isinstance(schema, type) and issubclass(schema, BaseModel):
        fields = schema.model_fields
    elif dataclasses.is_dataclass(schema):
        hints = get_type_hints(schema, include_extras=True)
        fields = {name: FieldInfo.from_annotation(hint) for name, hint in hints.items()}
    else:
        return []
    named = {str(entry.validation_alias or name): entry for name, entry in fields.items()}
    # Numbers and names of items are no fields.
    path = next((path[i:] for i, key in enumerate(path) if key in named), ())
    return _fields_at(named[str(path[0])].annotation, path[1:]) if path else [*named]


def _where(path: tuple[int | str, ...]) -> str:
    text = ""
    for key in path:
        if key == "[key]":  # pydantic's mark of a wrong name in a table, which stands before it
            continue
        text += f"[{key}]" if isinstance(key, int) else f".{key}" if text else str(key)
    return text if text.isprintable() and len(text) <= 200 else shown(text)


def _imperative(message: str) -> str:
    """Returns pydantic's `Input should be ...`, `String should have ...` as what to do."""
    _, should, rest = message.partition(" should ")
    return f"it should {rest}" if should else message
