"""Software profiles: how the kernels of a program compare with those a chip was measured with.

A chip's figures are of kernels measured one by one. In a step they run warm, throttled and
overlap with each other, and another release of the libraries has other kernels. What is left
between the sum of the kernels and the step is a few factors, fitted on few measured steps; a
profile says on which.
"""

import dataclasses
import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, PlainValidator

from exajax.errors import InputError, nearest
from exajax.files.reading import Malformed, read_toml, shown
from exajax.files.schema import Items, Name, Text, checked
from exajax.machine.sourced_values import (
    TABLE,
    ElementBytes,
    Factor,
    Seconds,
    SourcedBool,
    one_of,
    tuple_of,
    value_of,
)

PROFILES = Path(__file__).parents[1] / "meshes" / "software"


PRODUCTS = ("matmul", "attention")
"""Kinds of operation that the factor `matmul` is for."""

OVERLAPPABLE = ("gradients", "parameters", "stages", "regathers")
"""Collectives that a program may overlap with compute: gradients added up over replicas, parameters
gathered, what goes from stage to stage, and what weights' gradients need gathered once more."""

PROGRAMS = ("jax", "megatron")
"""Whose training steps are known: ours, and Megatron-LM's, which other frameworks took over."""


def _choice(known: tuple[str, ...]) -> PlainValidator:
    return PlainValidator(lambda pair: one_of(value_of(pair), known))


def _overlapped(pair: Any) -> tuple[str, ...]:
    given = value_of(pair)
    return (
        tuple_of(given, lambda name: one_of(name, OVERLAPPABLE), len(OVERLAPPABLE))
        if given != []
        else ()
    )


Level = Annotated[int, Field(strict=True, ge=0, le=3)]


@dataclass(frozen=True)
class SoftwareProfile:
    """A software profile: a `[software]` of a machine, or a file in `meshes/software`.

    Attributes:
        name: short name, such as `jax-2025`.
        title: what it is.
        matmul: seconds of a matrix product or fused attention in a step, over the chip's own.
        memory: the same of an operation that waits for memory.
        step_s: what every step takes besides: the host that starts it.
        beside: collectives that overlap with compute, of `OVERLAPPABLE`; for the analytic engine,
            since the compiled one reads it in the program.
        host_s: what the host takes to start a kernel, where kernels are started one by one; a
            block's pass takes as long as its host or its device, whichever is slower.
        host_collective_s: the same of a collective within a block.
        shards: seconds of gathering parameters and scattering gradients, over the collectives' own.
        dropout: whether blocks drop elements.
        gradient_bytes: bytes of a gradient that replicas add up.
        remat: what is recomputed where a published row does not say.
        program: whose training step it is, of `PROGRAMS`: what it keeps in memory goes by it.
        sources: parts of the names of the published sources whose rows ran with it.
        zero: the level of ZeRO that it is for, where a source has rows of two programs; else None.
        fitted_on: the measured steps that the factors are from.
        source: where those were measured.
    """

    __pydantic_config__ = TABLE

    name: Text
    title: Text
    matmul: Factor = 1.0
    memory: Factor = 1.0
    step_s: Annotated[Seconds, Field(validation_alias="step")] = 0.0
    beside: Annotated[tuple[str, ...], PlainValidator(_overlapped)] = (
        "gradients",
        "parameters",
        "stages",
    )
    host_s: Annotated[Seconds, Field(validation_alias="host")] = 0.0
    host_collective_s: Annotated[Seconds, Field(validation_alias="host_collective")] = 0.0
    shards: Factor = 1.0
    dropout: SourcedBool = False
    gradient_bytes: Annotated[ElementBytes, Field(validation_alias="gradient")] = 4.0
    remat: Annotated[str, PlainValidator(lambda pair: checked(Name, value_of(pair)))] = ""
    program: Annotated[str, _choice(PROGRAMS)] = "jax"
    sources: Items[Text] = ()
    zero: Level | None = None
    fitted_on: Items[Text] = ()
    source: Text = ""

    def overlaps(self, what: str) -> bool:
        """Whether a kind of collective overlaps with compute."""
        return what in self.beside

    def factor(self, kind: str) -> float:
        """Returns the factor of a kind of operation (`Operation.kind`)."""
        return self.matmul if kind in PRODUCTS else self.memory


AS_MEASURED = SoftwareProfile("as-measured", "kernels as they were measured, one by one")


def names() -> list[str]:
    """Returns the profiles that come with the project."""
    return sorted(path.stem for path in PROFILES.glob("*.toml"))


def load(name: str, where: str) -> SoftwareProfile:
    """Reads a profile by name; raises an `InputError` that names `where` it was asked for."""
    if name not in names():
        raise InputError(
            where, f"unknown software profile {shown(name)}", nearest(name[:100], names())
        )
    return read(name, read_toml(PROFILES / f"{name}.toml"))


@functools.cache
def of_source(source: str, zero: int | None = None) -> SoftwareProfile:
    """The profile that a published source's rows ran with; `AS_MEASURED` where it is unknown."""
    known = [load(name, "software") for name in names()]
    fitting = [one for one in known if any(part in source for part in one.sources)]
    of_level = [one for one in fitting if one.zero is not None and one.zero == zero]
    return next(iter(of_level + [one for one in fitting if one.zero is None]), AS_MEASURED)


def read(name: str, table: Any) -> SoftwareProfile:
    """Reads a profile from a table: factors with their source, and what they were fitted on.

    Args:
        name: of the profile.
        table: as it stands in a file.

    Raises:
        Malformed: it is no profile; names the field.
    """
    if not isinstance(table, dict):
        raise Malformed("", f"is {shown(table)}", "give a table")
    for key in ("matmul", "memory"):
        if key not in table:
            raise Malformed(key, "is missing", f'add {key} = [1.1, "source"]')
    for key in ("name", "source"):
        if key in table:
            raise Malformed(key, "is unknown", "leave it out")
    found = checked(SoftwareProfile, table | {"name": name})
    return dataclasses.replace(found, source=table["matmul"][1])


def _named_or_own(given: Any) -> SoftwareProfile:
    if not isinstance(given, str):
        return read("own", given)
    return read(one_of(given, names()), read_toml(PROFILES / f"{given}.toml"))


OfMachine = Annotated[SoftwareProfile, PlainValidator(_named_or_own)]
"""The profile that a machine names, or describes in a table of its own."""
