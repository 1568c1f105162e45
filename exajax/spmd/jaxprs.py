"""Traced programs (jaxprs): reading their operations, and running a part of one.

JAX does not promise the form of its traced programs: `jax.extend.core` promises less than the rest
of JAX, `jax.interpreters` nothing. Relied on, in jax 0.10.2 to 0.12.0:

- `jax.extend.core`: `Jaxpr`, `ClosedJaxpr`, `JaxprEqn`, `Literal`, their fields and `replace`. In
  0.12 the two kinds of programs are one class, which is its own `jaxpr`.
- `jax.interpreters.partial_eval.dce_jaxpr(program, [True])` leaves out what the result does not
  need; nothing public does that.
- A `scan` contains one program, with as many inputs and outputs as itself: constants, the carry,
  the arrays that it scans over. The number of each follows from their shapes: the parameters
  `num_consts` and `num_carry` are gone in 0.12.

A release that moves a name fails when exajax is imported, or when a loss is traced, before the
first step (`tests/spmd/test_jaxprs.py`).
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal
from jax.interpreters.partial_eval import dce_jaxpr

__all__ = [
    "Jaxpr",
    "JaxprEqn",
    "Literal",
    "carry_operands",
    "subprograms",
    "needed_inputs",
    "operations",
]


def subprograms(equation: JaxprEqn) -> Iterator[Jaxpr]:
    """Programs within an operation: of a `jit`, a loop, or branches."""
    for parameter in equation.params.values():
        for value in parameter if isinstance(parameter, tuple) else (parameter,):
            if isinstance(value, ClosedJaxpr):
                yield value.jaxpr
            elif isinstance(value, Jaxpr):
                yield value


def operations(jaxpr: Jaxpr) -> Iterator[JaxprEqn]:
    """All operations of a program, including those of the programs within."""
    for equation in jaxpr.eqns:
        yield equation
        for inner in subprograms(equation):
            yield from operations(inner)


def carry_operands(loop: JaxprEqn) -> slice:
    """The operands of a `scan` that are its carry; its first results are the carry again.

    Operands are constants, then the carry, then scanned arrays. The body sees and returns slices of
    scanned arrays, which have one axis less.
    """
    (body,) = subprograms(loop)
    scanned = sum(map(_is_sliced, loop.invars, body.invars))
    count = sum(not _is_sliced(*pair) for pair in zip(loop.outvars, body.outvars, strict=True))
    return slice(len(loop.invars) - scanned - count, len(loop.invars) - scanned)


def _is_sliced(outside: Any, within: Any) -> bool:
    return len(outside.aval.shape) != len(within.aval.shape)


def needed_inputs(
    program: ClosedJaxpr,
) -> tuple[list[bool], Callable[[Sequence[jax.Array]], jax.Array]]:
    """Which inputs the single result of a program depends on, and a function of only those.

    Operations that only have an effect, such as `jax.debug.print`, are left out.
    """
    needed, used = dce_jaxpr(_without_effects(program.jaxpr), [True])

    def run(inputs: Sequence[jax.Array]) -> jax.Array:
        (result,) = jax.core.eval_jaxpr(needed, program.consts, *inputs)
        return result

    return list(used), run


def _without_effects(jaxpr: Jaxpr) -> Jaxpr:
    """A program without operations that only have an effect.

    Dead-code elimination would consider them to be needed.
    """
    equations = [
        equation.replace(
            params={
                name: _without_effects_inside(value) for name, value in equation.params.items()
            },
            effects=set(),
        )
        for equation in jaxpr.eqns
        if equation.outvars or not equation.effects
    ]
    return jaxpr.replace(eqns=equations, effects=set())


def _without_effects_inside(value: Any) -> Any:
    if isinstance(value, Jaxpr):
        return _without_effects(value)
    if isinstance(value, ClosedJaxpr):
        return value.replace(jaxpr=_without_effects(value.jaxpr))
    if isinstance(value, tuple) and any(isinstance(x, ClosedJaxpr) for x in value):
        return tuple(map(_without_effects_inside, value))
    return value
