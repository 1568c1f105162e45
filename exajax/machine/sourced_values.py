"""Field types of machine descriptions, where each value comes with its source: `[value, source]`.

A type rejects a value without a source, of another unit, or outside of its range, and yields the
plain number in its base unit. The ranges include every machine that exists or is planned, with room
on both sides, and exclude values that would overflow or underflow when they are multiplied.
"""

import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

from pydantic import BeforeValidator, ConfigDict, PlainValidator

from exajax import units
from exajax.errors import nearest
from exajax.files.reading import Malformed, shown
from exajax.files.schema import Text, checked

T = TypeVar("T")

TABLE = ConfigDict(extra="forbid")
"""Pydantic configuration of a dataclass that is a table of a file: unknown keys are errors."""

MOST_ITEMS = 1000
"""Limit on the length of a list."""


@dataclass(frozen=True)
class Curve:
    """Fraction of the peak that a matrix product reaches, as a function of its FLOPs.

    Attributes:
        flops: FLOPs of a product, ascending.
        fraction: fraction of the peak for each.
    """

    flops: tuple[float, ...]
    fraction: tuple[float, ...]


def value_of(pair: Any) -> Any:
    """The value of a `[value, source]` pair; raises `Malformed` for anything without a source."""
    if not isinstance(pair, (list, tuple)) or len(pair) != 2 or not isinstance(pair[1], str):
        raise Malformed("", f"{shown(pair)} has no source", 'write [value, "source"]')
    try:
        checked(Text, pair[1])
    except Malformed:
        raise Malformed(
            "", f"has the source {shown(pair[1])}", "say in 1 to 1000 printable characters whence"
        ) from None
    return pair[0]


def number(value: Any, least: float, most: float) -> float:
    """A number from `least` to `most`, as a float; raises `Malformed` for anything else."""
    if type(value) not in (int, float) or not least <= value <= most:
        raise Malformed("", f"is {shown(value)}", f"give a number from {least:g} to {most:g}")
    return float(value)


def integer(value: Any, least: int, most: int) -> int:
    """An integer from `least` to `most`; raises `Malformed` for anything else."""
    if type(value) is not int or not least <= value <= most:
        raise Malformed("", f"is {shown(value)}", f"give a whole number from {least} to {most}")
    return value


def one_of(value: Any, known: Iterable[str]) -> str:
    """A name that is one of `known`; raises `Malformed`, with the most similar one, for others."""
    known = list(known)
    if not isinstance(value, str) or value not in known:
        raise Malformed("", f"is {shown(value)}", nearest(str(value)[:100], known))
    return value


def tuple_of(value: Any, read_item: Callable[[Any], T], most: int = MOST_ITEMS) -> tuple[T, ...]:
    """The items of a list of 1 to `most`, each passed through `read_item`.

    Raises:
        Malformed: the value is not such a list, or an item is malformed.
    """
    if not isinstance(value, (list, tuple)) or not 0 < len(value) <= most:
        raise Malformed("", f"is {shown(value)}", f"give a list of 1 to {most}")
    return tuple(read_item(item) for item in value)


def ascending_pairs(
    value: Any, first: tuple[float, float], second: tuple[float, float]
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The first and the second numbers of a list of pairs, which ascend by the first.

    Args:
        value: the list, without its source.
        first: least and most of the first numbers.
        second: least and most of the second numbers.

    Raises:
        Malformed: the value is not such a list.
    """

    def pair(item: Any) -> tuple[float, float]:
        x, y = item if isinstance(item, list) and len(item) == 2 else (item, None)
        return number(x, *first), number(y, *second)

    xs, ys = zip(*tuple_of(value, pair), strict=True)
    if any(a >= b for a, b in itertools.pairwise(xs)):
        raise Malformed("", "does not ascend", "give points by ascending first number")
    return xs, ys


def _quantity(example: str, unit: str, least: float, most: float) -> BeforeValidator:
    """Validator of a sourced quantity in a unit, from `least` to `most` in its base unit."""

    def read(pair: Any) -> float:
        text = value_of(pair)
        if not isinstance(text, str):
            raise Malformed("", f"is {shown(text)}", f'write it as "{example}"')
        value = units.parse(text, unit, example)
        if not least <= value <= most:
            ends = f"{units.show(least, unit)} to {units.show(most, unit)}"
            raise Malformed("", f"is {shown(text)}", f"give {ends}")
        return value

    return BeforeValidator(read)


def _sourced_number(least: float, most: float) -> BeforeValidator:
    return BeforeValidator(lambda pair: number(value_of(pair), least, most))


def _plain_number(least: float, most: float) -> BeforeValidator:
    return BeforeValidator(lambda value: number(value, least, most))


FLOPS = (1.0, 1e24)
"""Range of the FLOPs of one matrix product."""

BYTES = (1.0, 1e15)
"""Range of the bytes of an array that is communicated."""

MICROSECONDS = (1e-6, 1e9)
"""Range of the microseconds of a collective."""

FRACTION = (1e-6, 1.0)
"""Range of a fraction of a peak."""

Bandwidth = Annotated[float, _quantity("3.35 TB/s", "B/s", 1e3, 1e17)]
"""Bandwidth of a memory, a link or a network, in one direction: `["3.35 TB/s", "source"]`."""

FlopRate = Annotated[float, _quantity("989 TFLOP/s", "FLOP/s", 1e6, 1e20)]
"""Peak of one device: `["989 TFLOP/s", "source"]`."""

Capacity = Annotated[float, _quantity("80 GiB", "B", 1e6, 1e16)]
"""Memory capacity of one device: `["80 GiB", "source"]`."""

ElementBytes = Annotated[float, _quantity("2 B", "B", 0.5, 16.0)]
"""Size of an element of an array: `["2 B", "source"]`."""

Seconds = Annotated[float, _quantity("2.5 us", "s", 1e-12, 100.0)]
"""A latency, or another time that does not grow with the work: `["2.5 us", "source"]`."""

Power = Annotated[float, _quantity("700 W", "W", 0.1, 1e6)]
"""Rated power of one device: `["700 W", "source"]`."""

Share = Annotated[float, _sourced_number(0.0, 1.0)]
"""A number from 0 to 1: `[0.02, "source"]`."""

Fraction = Annotated[float, _sourced_number(*FRACTION)]
"""Fraction of a peak, above 0 and at most 1: `[0.8, "source"]`."""

Factor = Annotated[float, _sourced_number(1e-3, 1e3)]
"""Factor that multiplies a time: `[1.1, "source"]`."""

Count = Annotated[int, BeforeValidator(lambda pair: integer(value_of(pair), 1, 10**7))]
"""Number of nodes, devices or cores: `[8, "source"]`."""

SourcedBool = Annotated[bool, PlainValidator(lambda pair: _boolean(value_of(pair)))]
"""A yes or no: `[true, "source"]`."""

SourcedCurve = Annotated[
    Curve, PlainValidator(lambda pair: Curve(*ascending_pairs(value_of(pair), FLOPS, FRACTION)))
]
"""A `Curve`, as pairs of FLOPs and fraction: `[[[1e9, 0.5], [1e12, 0.7]], "source"]`."""

CoefficientShare = Annotated[float, _plain_number(0.0, 1.0)]
CoefficientFraction = Annotated[float, _plain_number(*FRACTION)]
CoefficientSeconds = Annotated[float, _plain_number(1e-12, 100.0)]
CoefficientFlops = Annotated[float, _plain_number(*FLOPS)]
Coefficient = Annotated[float, _plain_number(1e-6, 1e6)]
"""A fitted coefficient: a plain number, since all of a fit share the one source of their table."""


def sources_of(table: dict[str, Any]) -> dict[str, str]:
    """Sources of all values of a validated table, by path of keys (`memory.bandwidth`)."""
    sources: dict[str, str] = {}
    for key, value in table.items():
        if key in ("device_kinds", "aliases", "fitted_on", "sources"):  # lists of names
            continue
        if isinstance(value, dict):
            sources |= {f"{key}.{name}": source for name, source in sources_of(value).items()}
        elif key == "source":  # of every value in this table
            sources[key] = value
        elif isinstance(value, list) and len(value) == 2 and isinstance(value[1], str):
            sources[key] = value[1]
    return sources


def _boolean(value: Any) -> bool:
    if not isinstance(value, bool):
        raise Malformed("", f"is {shown(value)}", "give true or false")
    return value
