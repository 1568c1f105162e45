"""Figures of training programs that were fitted or chosen by hand: `meshes/programs/*.toml`.

The analytic engine's formulas say which collectives and bytes there are; how much a compiler or a
framework overlaps, copies and fuses is a number that was fitted to its programs or chosen to agree
with them. Each is an entry `{ value, unit, about, source }` of a file, checked like the values of a
machine, and a plain number in memory.
"""

import functools
import hashlib
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BeforeValidator

from exajax.files.reading import Malformed, read_toml
from exajax.files.schema import Schema, Text, checked
from exajax.machine.sourced_values import number, tuple_of

PROGRAMS = Path(__file__).parents[1] / "meshes" / "programs"

T = TypeVar("T")

LARGEST = 1e6
"""Largest value of a figure."""


class Entry(Schema):
    """One figure of a program.

    Attributes:
        value: a number, or a list of them.
        unit: what it counts, such as `bytes a parameter` or `share of the collective`.
        about: what it says, and of how many values which is which.
        source: fitted or chosen by hand, to what, by which script and when.
    """

    value: Any
    unit: Text
    about: Text
    source: Text


def _number(entry: Any) -> float:
    return number(checked(Entry, entry).value, 0.0, LARGEST)


def _numbers(count: int) -> BeforeValidator:
    def read(entry: Any) -> tuple[float, ...]:
        return numbers(checked(Entry, entry).value, count)

    return BeforeValidator(read)


def numbers(value: Any, count: int) -> tuple[float, ...]:
    """A list of so many numbers; raises `Malformed` for anything else."""
    found = tuple_of(value, lambda item: number(item, 0.0, LARGEST))
    if len(found) != count:
        raise Malformed("", f"has {len(found)} numbers", f"give {count}")
    return found


Figure = Annotated[float, BeforeValidator(_number)]
"""One number."""

Pair = Annotated[tuple[float, float], _numbers(2)]
"""Two numbers; of passes, the forward and the backward one."""

Triple = Annotated[tuple[float, float, float], _numbers(3)]
"""Three numbers."""


@functools.cache
def load_program(name: str, schema: type[T]) -> T:
    """The figures of a program that comes with the project.

    Args:
        name: of the file, without its ending.
        schema: a dataclass of `Figure`s, or of tables of them.

    Raises:
        Malformed: the file does not fit the schema; names the first field that is wrong.
    """
    return checked(schema, read_toml(PROGRAMS / f"{name}.toml"))


@functools.cache
def program_digest(name: str) -> str:
    """Hash of a program's file; programs of equal digest give equal predictions."""
    return hashlib.sha256((PROGRAMS / f"{name}.toml").read_bytes()).hexdigest()[:16]
