"""What figures in the machine descriptions may be: `[value, source]`, in a unit and a range.

Each type here is what a field of a file is annotated with. It refuses a figure without a source, of
another unit, or out of the range of its quantity, and leaves the number alone, in its base unit.
The ranges hold every machine that exists or is drawn up with room on both sides, and keep times and
rates far from where floating-point numbers end.
"""

import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BeforeValidator, ConfigDict, PlainValidator

from exajax import units
from exajax.errors import nearest
from exajax.files.reading import Malformed, shown
from exajax.files.schema import Text, checked

TABLE = ConfigDict(extra="forbid")
"""Of a dataclass that is a table of a file: nothing unknown. Its fields check themselves."""

MOST_POINTS = 1000
"""Longest list of points, of rows, or of names."""


@dataclass(frozen=True)
class Curve:
    """Fraction of the peak that is reached, by the FLOPs of one matrix product.

    Attributes:
        flops: sizes of product, ascending.
        fraction: fraction of the peak at each.
    """

    flops: tuple[float, ...]
    fraction: tuple[float, ...]


def value_of(pair: Any) -> Any:
    """Returns what stands before a source; raises `Malformed` where there is none."""
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
    """Returns a number between two others; raises `Malformed` for anything else."""
    if type(value) not in (int, float) or not least <= value <= most:
        raise Malformed("", f"is {shown(value)}", f"give a number from {least:g} to {most:g}")
    return float(value)


def whole(value: Any, least: int, most: int) -> int:
    """Returns a whole number between two others; raises `Malformed` for anything else."""
    if type(value) is not int or not least <= value <= most:
        raise Malformed("", f"is {shown(value)}", f"give a whole number from {least} to {most}")
    return value


def one_of(value: Any, known: Iterable[str]) -> str:
    """Returns a known name; raises `Malformed` with the nearest one for another."""
    known = list(known)
    if not isinstance(value, str) or value not in known:
        raise Malformed("", f"is {shown(value)}", nearest(str(value)[:100], known))
    return value


def values(given: Any, of: Callable[[Any], Any], most: int = MOST_POINTS) -> tuple[Any, ...]:
    """Returns the items of a list, at most `most`, each as `of` returns it."""
    if not isinstance(given, (list, tuple)) or not 0 < len(given) <= most:
        raise Malformed("", f"is {shown(given)}", f"give a list of 1 to {most}")
    return tuple(of(item) for item in given)


def points(
    given: Any, first: tuple[float, float], second: tuple[float, float]
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Returns the first and the second numbers of pairs, the first ascending.

    Args:
        given: what stands in the file before the source.
        first: least and most of the first numbers.
        second: least and most of the second numbers.
    """

    def pair(item: Any) -> tuple[float, float]:
        x, y = item if isinstance(item, list) and len(item) == 2 else (item, None)
        return number(x, *first), number(y, *second)

    xs, ys = zip(*values(given, pair), strict=True)
    if any(a >= b for a, b in itertools.pairwise(xs)):
        raise Malformed("", "does not ascend", "give points by ascending first number")
    return xs, ys


def _figure(example: str, unit: str, least: float, most: float) -> BeforeValidator:
    """A figure in a unit, between two others."""

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


def _number(least: float, most: float) -> BeforeValidator:
    return BeforeValidator(lambda pair: number(value_of(pair), least, most))


def _coefficient(least: float, most: float) -> BeforeValidator:
    return BeforeValidator(lambda value: number(value, least, most))


FLOPS = (1.0, 1e24)
"""FLOPs of one matrix product."""

BYTES = (1.0, 1e15)
"""Bytes of an array that is communicated."""

MICROSECONDS = (1e-6, 1e9)
"""Of a collective, whatever its array."""

FRACTION = (1e-6, 1.0)

Bandwidth = Annotated[float, _figure("3.35 TB/s", "B/s", 1e3, 1e17)]
"""Of a memory, a link or a network, in one direction, as `["3.35 TB/s", "source"]`."""

FlopRate = Annotated[float, _figure("989 TFLOP/s", "FLOP/s", 1e6, 1e20)]
"""Of one device, as `["989 TFLOP/s", "source"]`."""

Capacity = Annotated[float, _figure("80 GiB", "B", 1e6, 1e16)]
"""Memory of one device, as `["80 GiB", "source"]`."""

ElementBytes = Annotated[float, _figure("2 B", "B", 0.5, 16.0)]
"""Size of an element of an array, as `["2 B", "source"]`."""

Seconds = Annotated[float, _figure("2.5 us", "s", 1e-12, 100.0)]
"""A latency or another time that does not grow with the work, as `["2.5 us", "source"]`."""

Power = Annotated[float, _figure("700 W", "W", 0.1, 1e6)]
"""Of one device, as `["700 W", "source"]`."""

Share = Annotated[float, _number(0.0, 1.0)]
"""A number from 0 to 1, as `[0.02, "source"]`."""

Fraction = Annotated[float, _number(*FRACTION)]
"""Of a peak, above 0 and at most 1, as `[0.8, "source"]`."""

Factor = Annotated[float, _number(1e-3, 1e3)]
"""By which a time is longer, as `[1.1, "source"]`."""

Count = Annotated[int, BeforeValidator(lambda pair: whole(value_of(pair), 1, 10**7))]
"""Of nodes, devices or cores, as `[8, "source"]`."""

Yes = Annotated[bool, PlainValidator(lambda pair: _yes(value_of(pair)))]
"""Whether something is so, as `[true, "source"]`."""

ACurve = Annotated[
    Curve, PlainValidator(lambda pair: Curve(*points(value_of(pair), FLOPS, FRACTION)))
]
"""Fractions by FLOPs of a product, as `[[[1e9, 0.5], [1e12, 0.7]], "source"]`."""

CoefficientShare = Annotated[float, _coefficient(0.0, 1.0)]
CoefficientFraction = Annotated[float, _coefficient(*FRACTION)]
CoefficientSeconds = Annotated[float, _coefficient(1e-12, 100.0)]
CoefficientFlops = Annotated[float, _coefficient(*FLOPS)]
Coefficient = Annotated[float, _coefficient(1e-6, 1e6)]
"""Coefficients of a fit, whose table has one source for all of them."""


def sources_of(table: dict[str, Any]) -> dict[str, str]:
    """Returns the source of every figure of a table that was checked, by its path of keys."""
    found: dict[str, str] = {}
    for key, value in table.items():
        if key in ("device_kinds", "aliases", "fitted_on", "sources"):  # names, no figures
            continue
        if isinstance(value, dict):
            found |= {f"{key}.{name}": source for name, source in sources_of(value).items()}
        elif key == "source":  # of every figure in the table
            found[key] = value
        elif isinstance(value, list) and len(value) == 2 and isinstance(value[1], str):
            found[key] = value[1]
    return found


def _yes(value: Any) -> bool:
    if not isinstance(value, bool):
        raise Malformed("", f"is {shown(value)}", "give true or false")
    return value
