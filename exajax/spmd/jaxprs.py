"""Traced programs (jaxprs): what is read of them, and how a part of one is run.

JAX keeps the form of its traced programs for itself: `jax.extend.core` promises less than the rest
of JAX, `jax.interpreters` nothing. Relied on, in jax 0.10.2 to 0.12.0:

- `jax.extend.core`: `Jaxpr`, `ClosedJaxpr`, `JaxprEqn`, `Literal`, their fields and `replace`. In
  0.12 the two kinds of programs are one class, which is its own `jaxpr`.
- `jax.interpreters.partial_eval.dce_jaxpr(program, [True])` leaves out what the result does not
  need; nothing public does.
- A `scan` has one program within, with as many inputs and outputs as itself: constants, what is
  carried, what it scans over. How many there are of each is read from their shapes: the parameters
  that say so (`num_consts`, `num_carry`) are gone in 0.12.

A release that moves a name fails when exajax loads it, or where a loss is looked at, before the
first step (`tests/spmd/test_jaxprs.py`).
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal
from jax.interpreters.partial_eval import dce_jaxpr

__all__ = ["Jaxpr", "JaxprEqn", "Literal", "carried", "inside", "needed_inputs", "operations"]


def inside(equation: JaxprEqn) -> Iterator[Jaxpr]:
    """Yields the programs within an operation: of `jit`, of a loop, of branches."""
    for parameter in equation.params.values():
        for value in parameter if isinstance(parameter, tuple) else (parameter,):
            if isinstance(value, ClosedJaxpr):
                yield value.jaxpr
            elif isinstance(value, Jaxpr):
                yield value


def operations(jaxpr: Jaxpr) -> Iterator[JaxprEqn]:
    """Yields all operations of a program, those of the programs within too."""
    for equation in jaxpr.eqns:
        yield equation
        for inner in inside(equation):
            yield from operations(inner)


def carried(loop: JaxprEqn) -> slice:
    """Returns which operands of a `scan` each trip hands to the next; its first results are those.

    Constants, what is carried and what is scanned over follow each other. What a trip sees or makes
    a slice of has one axis less within the loop.
    """
    (body,) = inside(loop)
    scanned = sum(map(_is_sliced, loop.invars, body.invars))
    count = sum(not _is_sliced(*pair) for pair in zip(loop.outvars, body.outvars, strict=True))
    return slice(len(loop.invars) - scanned - count, len(loop.invars) - scanned)


def _is_sliced(outside: Any, within: Any) -> bool:
    return len(outside.aval.shape) != len(within.aval.shape)


def needed_inputs(
    program: ClosedJaxpr,
) -> tuple[list[bool], Callable[[Sequence[jax.Array]], jax.Array]]:
    """Returns which inputs the one result of a program depends on, and a function of those alone.

    What has an effect and no result, such as `jax.debug.print`, is left out with the rest.
    """
    needed, used = dce_jaxpr(_silent(program.jaxpr), [True])

    def run(inputs: Sequence[jax.Array]) -> jax.Array:
        (result,) = jax.core.eval_jaxpr(needed, program.consts, *inputs)
        return result

    return list(used), run


def _silent(jaxpr: Jaxpr) -> Jaxpr:
    """Returns a program without operations that have an effect and no result.

    They would be kept as if they were needed.
    """
    equations = [
        equation.replace(
            params={name: _silent_inside(value) for name, value in equation.params.items()},
            effects=set(),
        )
        for equation in jaxpr.eqns
        if equation.outvars or not equation.effects
    ]
    return jaxpr.replace(eqns=equations, effects=set())


def _silent_inside(value: Any) -> Any:
    if isinstance(value, Jaxpr):
        return _silent(value)
    if isinstance(value, ClosedJaxpr):
        return value.replace(jaxpr=_silent(value.jaxpr))
    if isinstance(value, tuple) and any(isinstance(x, ClosedJaxpr) for x in value):
        return tuple(map(_silent_inside, value))
    return value
