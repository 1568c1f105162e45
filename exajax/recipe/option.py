"""Options of a job: dataclass fields from which flags, help, checks, JSON and docs are generated.

An option is a field of a frozen dataclass, made by `option`. No other code lists its name.
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
    """Metadata of an option; its name, type and default are the dataclass field's.

    Attributes:
        help: description for people.
        choices: allowed values; empty for a number, a text or a switch.
        least: smallest allowed number; minus infinity if it is not a number.
        most: largest allowed number.
        above: whether `least` itself is excluded.
        below: whether `most` itself is excluded.
        unit: placeholder for the value in help.
        scope: what a change of the option can affect: `results` of training; only their `rounding`
            (the layout on devices); the `length` of the run; the `course` of a training process,
            which must be equal on all hosts; or a single `host`. A run can be continued as the same
            job if the options of scope `results` are equal.
        derived: how the default follows from other options, for people; empty if it does not.
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
        """The allowed range of numbers, for people."""
        lowest = f"{'above' if self.above else 'from'} {_shown(self.least)}"
        if self.most == math.inf:
            return lowest if self.above else f"{lowest} on"
        return f"{lowest} to {'below ' if self.below else ''}{_shown(self.most)}"

    def contains(self, number: float) -> bool:
        """Whether a number is in the range; NaN is not."""
        too_small = number <= self.least if self.above else number < self.least
        too_large = number >= self.most if self.below else number > self.most
        return math.isfinite(number) and not too_small and not too_large


def _shown(number: float) -> str:
    """A number for people, integers with all digits: 16,777,216, not 1.67772e+07."""
    return f"{number:,.0f}" if number == int(number) else f"{number:,g}"


def option(help: str, default: Any = dataclasses.MISSING, **metadata: Any) -> Any:
    """A dataclass field that is an option.

    Args:
        help: description for people.
        default: default of the field; without one, it is required.
        **metadata: further attributes of `Option`.
    """
    return dataclasses.field(default=default, metadata={"option": Option(help, **metadata)})


def option_fields(of: Any) -> Iterator[tuple["dataclasses.Field[Any]", Option]]:
    """Fields of a dataclass that are options, in order, each with its metadata.

    Args:
        of: the class, or an instance.
    """
    for field in dataclasses.fields(of):
        if "option" in field.metadata:
            yield field, field.metadata["option"]


def option_names(of: Any, *scopes: Scope) -> tuple[str, ...]:
    """Names of the options of some scopes; without scopes, of all."""
    return tuple(
        field.name for field, metadata in option_fields(of) if metadata.scope in (scopes or SCOPES)
    )


SCOPES: tuple[Scope, ...] = get_args(Scope)


def to_json(instance: Any) -> dict[str, Any]:
    """Options of an instance by name, as JSON."""
    values = {field.name: getattr(instance, field.name) for field, _ in option_fields(instance)}
    return {k: str(v) if isinstance(v, Path) else v for k, v in values.items()}


def from_json(of: type[T], table: Mapping[str, Any]) -> T:
    """An instance of a class of options from the JSON that `to_json` made, checked.

    Raises:
        InputError: a value is not allowed; names the option.
    """
    values = dict(table)
    for field, _ in option_fields(of):
        is_path = field.type is Path or Path in get_args(field.type)
        if is_path and values.get(field.name) is not None:
            values[field.name] = Path(values[field.name])
    instance = of(**values)
    check_options(instance)
    return instance


def is_whole(field: "dataclasses.Field[Any]") -> bool:
    """Whether the values of an option are integers."""
    return field.type is int or int in get_args(field.type)


def check_options(instance: Any) -> None:
    """Checks each option of an instance against its choices or its range.

    Raises:
        InputError: a value is not allowed; names the option.
    """
    for field, metadata in option_fields(instance):
        value = getattr(instance, field.name)
        if value is None and type(None) in get_args(field.type):
            continue
        if metadata.choices:
            if value not in metadata.choices:
                fix = nearest(str(value), [str(choice) for choice in metadata.choices])
                raise InputError(field.name, f"unknown value {value!r}", fix)
        elif metadata.least > -math.inf:
            kinds = int if is_whole(field) else (int, float)
            if (
                isinstance(value, bool)
                or not isinstance(value, kinds)
                or not metadata.contains(value)
            ):
                kind = "whole number" if is_whole(field) else "number"
                raise InputError(field.name, f"it is {value}", f"give a {kind} {metadata.range}")
