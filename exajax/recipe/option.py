"""One option of a job: all that flags, help, checks, JSON and pages need to know of a field.

An option is a field of a frozen dataclass, made by `option`. Nothing else lists its name.
"""

import dataclasses
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

from exajax.errors import InputError, nearest

Scope = Literal["results", "rounding", "length", "course", "host"]

T = TypeVar("T")


@dataclass(frozen=True)
class Option:
    """What is known of an option beside its name, its type and its default.

    Attributes:
        help: what it is, in words.
        choices: values that it may have; empty where it is a number, a text or a switch.
        least: the smallest number that it may be; minus infinity where it is no number.
        most: the largest.
        above: whether `least` itself is too small.
        below: whether `most` itself is too large.
        unit: what help shows for its value.
        scope: what changes with it: a run's results; their rounding alone (the layout on devices);
            its length; the course of a training process, which has to be the same on all hosts; or
            something of one host alone. A run goes on as the same job if its results' options are
            the same.
        derived: how its default follows from other options, in words; empty where it has one.
    """

    help: str
    choices: tuple[Any, ...] = ()
    least: float = -math.inf
    most: float = math.inf
    above: bool = False
    below: bool = False
    unit: str = "N"
    scope: Scope = "results"
    derived: str = ""

    @property
    def range(self) -> str:
        """The numbers that it may be, in words."""
        lowest = f"{'above' if self.above else 'from'} {_shown(self.least)}"
        if self.most == math.inf:
            return lowest if self.above else f"{lowest} on"
        return f"{lowest} to {'below ' if self.below else ''}{_shown(self.most)}"

    def holds(self, number: float) -> bool:
        """Returns whether a number is in the range; NaN is in none."""
        too_small = number <= self.least if self.above else number < self.least
        too_large = number >= self.most if self.below else number > self.most
        return math.isfinite(number) and not too_small and not too_large


def _shown(number: float) -> str:
    """Returns a number with all of its digits where it is whole: 16,777,216, not 1.67772e+07."""
    return f"{number:,.0f}" if number == int(number) else f"{number:,g}"


def option(help: str, default: Any = dataclasses.MISSING, **known: Any) -> Any:
    """Returns a dataclass field that is an option.

    Args:
        help: what it is, in words.
        default: of the field; without one it has to be given.
        known: further attributes of `Option`.
    """
    return dataclasses.field(default=default, metadata={"option": Option(help, **known)})


def options(of: Any) -> Iterator[tuple["dataclasses.Field[Any]", Option]]:
    """Yields the fields of a dataclass that are options, in order.

    Args:
        of: the class, or an instance.
    """
    for field in dataclasses.fields(of):
        if "option" in field.metadata:
            yield field, field.metadata["option"]


def names(of: Any, *scopes: Scope) -> tuple[str, ...]:
    """Returns the names of the options of some scopes, or of all."""
    return tuple(field.name for field, known in options(of) if known.scope in (scopes or SCOPES))


SCOPES: tuple[Scope, ...] = get_args(Scope)


def to_json(instance: Any) -> dict[str, Any]:
    """Returns the options of an instance by name, as JSON."""
    values = {field.name: getattr(instance, field.name) for field, _ in options(instance)}
    return {k: str(v) if isinstance(v, Path) else v for k, v in values.items()}


def from_json(of: type[T], table: Mapping[str, Any]) -> T:
    """Returns a checked instance of a class whose fields are options, from what `to_json` made.

    Raises:
        InputError: a value cannot be; names the option.
    """
    values = dict(table)
    for field, _ in options(of):
        is_path = field.type is Path or Path in get_args(field.type)
        if is_path and values.get(field.name) is not None:
            values[field.name] = Path(values[field.name])
    instance = of(**values)
    check(instance)
    return instance


def is_whole(field: "dataclasses.Field[Any]") -> bool:
    """Returns whether the values of an option are whole numbers."""
    return field.type is int or int in get_args(field.type)


def check(instance: Any) -> None:
    """Checks every option of an instance by itself: its choices, or its range.

    Raises:
        InputError: a value cannot be; names the option.
    """
    for field, known in options(instance):
        value = getattr(instance, field.name)
        if value is None and type(None) in get_args(field.type):
            continue
        if known.choices:
            if value not in known.choices:
                fix = nearest(str(value), [str(choice) for choice in known.choices])
                raise InputError(field.name, f"unknown value {value!r}", fix)
        elif known.least > -math.inf:
            kinds = int if is_whole(field) else (int, float)
            if isinstance(value, bool) or not isinstance(value, kinds) or not known.holds(value):
                kind = "whole number" if is_whole(field) else "number"
                raise InputError(field.name, f"it is {value}", f"give a {kind} {known.range}")
