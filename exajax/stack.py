"""Software stacks: how the kernels of a program compare with those a chip was measured with.

A chip's figures are of kernels measured one by one. In a step they run warm, throttled and beside
each other, and another release of the libraries has other kernels. What is left between the sum of
the kernels and the step is a few factors, fitted on few measured steps; a stack says on which.
"""

import functools
from dataclasses import dataclass
from pathlib import Path

from exajax.errors import InputError, nearest
from exajax.figures import Table, read_toml

STACKS = Path(__file__).parent / "meshes" / "stacks"


PRODUCTS = ("matmul", "attention")
"""Kinds of operation that the factor `matmul` is for."""

BESIDE = ("gradients", "parameters", "stages", "regathers")
"""Collectives that a program may run beside compute: gradients added up over replicas, parameters
gathered, what goes from stage to stage, and what weights' gradients need gathered once more."""

PROGRAMS = ("jax", "megatron")
"""Whose training steps are known: ours, and Megatron-LM's, which other frameworks took over."""


@dataclass(frozen=True)
class Stack:
    """A software stack.

    Attributes:
        name: short name, such as `jax-2025`.
        title: what it is.
        matmul: seconds of a matrix product or fused attention in a step, over the chip's own.
        memory: the same of an operation that waits for memory.
        step_s: what every step takes besides: the host that starts it.
        beside: collectives that run beside compute, of `BESIDE`; for the analytic engine, the
            compiled one reads it in the program.
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

    name: str
    title: str
    matmul: float = 1.0
    memory: float = 1.0
    step_s: float = 0.0
    beside: tuple[str, ...] = ("gradients", "parameters", "stages")
    host_s: float = 0.0
    host_collective_s: float = 0.0
    shards: float = 1.0
    dropout: bool = False
    gradient_bytes: float = 4.0
    remat: str = ""
    program: str = "jax"
    sources: tuple[str, ...] = ()
    zero: int | None = None
    fitted_on: tuple[str, ...] = ()
    source: str = ""

    def hides(self, what: str) -> bool:
        """Returns whether a kind of collective runs beside compute."""
        return what in self.beside

    def factor(self, kind: str) -> float:
        """Returns the factor of a kind of operation (`Operation.kind`)."""
        return self.matmul if kind in PRODUCTS else self.memory


AS_MEASURED = Stack("as-measured", "kernels as they were measured, one by one")


def names() -> list[str]:
    """Returns the stacks that come with the project."""
    return sorted(path.stem for path in STACKS.glob("*.toml"))


def load(name: str, where: str) -> Stack:
    """Reads a stack by name; raises an `InputError` that names `where` it was asked for."""
    if name not in names():
        raise InputError(where, f"unknown stack {name!r}", nearest(name, names()))
    return read(name, Table(read_toml(STACKS / f"{name}.toml", where), f"stack {name}"))


@functools.cache
def of_source(source: str, zero: int | None = None) -> Stack:
    """Returns the stack that the rows of a published source ran with; `AS_MEASURED` if unknown."""
    known = [load(name, "stack") for name in names()]
    fitting = [one for one in known if any(part in source for part in one.sources)]
    of_level = [one for one in fitting if one.zero is not None and one.zero == zero]
    return next(iter(of_level + [one for one in fitting if one.zero is None]), AS_MEASURED)


def read(name: str, table: Table) -> Stack:
    """Reads a stack from a table: factors with their source, and what they were fitted on."""
    given = table.values
    return Stack(
        name=name,
        title=table.text("title"),
        matmul=table.factor("matmul"),
        memory=table.factor("memory"),
        step_s=_seconds(table, "step"),
        beside=_beside(table),
        host_s=_seconds(table, "host"),
        host_collective_s=_seconds(table, "host_collective"),
        shards=table.factor("shards") if "shards" in given else 1.0,
        dropout=bool(table.sourced("dropout", '[true, "source"]')) if "dropout" in given else False,
        gradient_bytes=table.figure("gradient", "B") if "gradient" in given else 4.0,
        remat=str(table.sourced("remat", '["none", "source"]')) if "remat" in given else "",
        program=_program(table),
        sources=tuple(str(part) for part in given.get("sources", ())),
        zero=given.get("zero"),
        fitted_on=tuple(str(row) for row in given.get("fitted_on", ())),
        source=table.values["matmul"][1],
    )


def _seconds(table: Table, key: str) -> float:
    return table.figure(key, "s") if key in table.values else 0.0


def _program(table: Table) -> str:
    if "program" not in table.values:
        return AS_MEASURED.program
    given = str(table.sourced("program", '["megatron", "source"]'))
    if given not in PROGRAMS:
        raise InputError(table.where, f"program is {given!r}", nearest(given, PROGRAMS))
    return given


def _beside(table: Table) -> tuple[str, ...]:
    if "beside" not in table.values:
        return AS_MEASURED.beside
    given = tuple(table.sourced("beside", '[["gradients"], "source"]'))
    for what in given:
        if what not in BESIDE:
            raise InputError(table.where, f"beside has {what!r}", nearest(str(what), BESIDE))
    return given
