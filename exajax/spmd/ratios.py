"""Finds a loss that divides by a sum over its batch, as a masked mean written by hand does.

`(values * mask).sum() / mask.sum()` is no mean in which every sample counts the same: the mean of
this ratio over two micro-batches is another number than the ratio of both together. The traced
program shows it: it divides by one number for the whole batch that is computed from the batch.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax

from exajax.spmd.jaxprs import Jaxpr, JaxprEqn, Literal, carried, inside

Tree = Any

DIVISIONS = {"div": 1, "rem": 1, "rsqrt": 0, "integer_pow": 0, "pow": 0}
"""Operand that divides, by the operation; of powers where the exponent may be negative."""

VARIES = ("iota", "concatenate", "pad", "random_bits", "random_unwrap")
"""Operations that make different numbers of equal ones."""


@dataclass(frozen=True)
class Origin:
    """What a value of a traced program is computed from.

    Attributes:
        batch: whether from the batch.
        others: whether from parameters, or from the stream of a pipeline.
        one: whether it is one number, or an array that repeats one.
    """

    batch: bool = False
    others: bool = False
    one: bool = False

    @classmethod
    def of(cls, parts: Sequence["Origin"]) -> "Origin":
        """Returns the origin of what is computed from several values."""
        batch, others = any(p.batch for p in parts), any(p.others for p in parts)
        return cls(batch, others, bool(parts) and all(p.one for p in parts))


def divides_by_the_batch(loss: Callable[..., Any], others: Tree, batch: Tree) -> bool:
    """Returns whether a loss divides by one number that it computes from its batch alone.

    What it divides by for each sample (the sum of a softmax), and what follows from the parameters
    too, is not meant.

    Args:
        loss: `loss(*others, batch)`.
        others: what else it takes, as shapes: parameters, or the stream of a pipeline.
        batch: its arrays, as shapes.
    """
    jaxpr = jax.make_jaxpr(loss)(*others, batch).jaxpr
    shared = len(jaxpr.invars) - len(jax.tree.leaves(batch))
    given = [Origin(others=True)] * shared + [Origin(batch=True)] * len(jax.tree.leaves(batch))
    return _followed(jaxpr, given)[1]


def _followed(jaxpr: Jaxpr, given: Sequence[Origin]) -> tuple[list[Origin], bool]:
    """Returns the origins of a program's results, and whether it divides by one of the batch.

    Args:
        jaxpr: the program.
        given: the origins of its inputs.
    """
    origins: dict[Any, Origin] = dict(zip(jaxpr.invars, given, strict=True))

    def origin(value: Any) -> Origin:
        if isinstance(value, Literal):
            return Origin(one=True)
        known = origins.get(value, Origin())
        return Origin(known.batch, known.others, known.one or value.aval.size == 1)

    found = False
    for equation in jaxpr.eqns:
        operands = [origin(value) for value in equation.invars]
        found |= _divides(equation, operands)
        results = [Origin.of(operands)] * len(equation.outvars)
        if equation.primitive.name in VARIES:
            results = [Origin(one.batch, one.others) for one in results]
        if equation.primitive.name == "scan":
            results = _looped(equation, operands)
        else:
            for inner in inside(equation):
                same = len(inner.invars) == len(operands)
                within = operands if same else [_mixed(operands)] * len(inner.invars)
                ends, found_inside = _followed(inner, within)
                found |= found_inside
                # Of branches, any result may be of anything.
                results = ends if same else [_mixed(operands)] * len(results)
        origins.update(zip(equation.outvars, results, strict=True))
    return [origin(value) for value in jaxpr.outvars], found


def _looped(equation: JaxprEqn, operands: Sequence[Origin]) -> list[Origin]:
    """Returns the origins of a loop's results.

    What divides within the loop is one number of one turn, which may be that of a sample, and is
    not looked at.
    """
    (body,) = inside(equation)
    handed_on = carried(equation)
    given = [Origin(one.batch, one.others) for one in operands]
    while True:
        ends, _ = _followed(body, given)
        kept = [_mixed(pair) for pair in zip(given[handed_on], ends, strict=False)]
        if kept == given[handed_on]:
            return [Origin(one.batch, one.others) for one in ends]
        given[handed_on] = kept


def _divides(equation: JaxprEqn, operands: Sequence[Origin]) -> bool:
    name = equation.primitive.name
    if name not in DIVISIONS or equation.params.get("y", -1) > 0:
        return False
    by = operands[DIVISIONS[name]]
    return by.batch and by.one and not by.others


def _mixed(parts: Sequence[Origin]) -> Origin:
    mixed = Origin.of(parts)
    return Origin(mixed.batch, mixed.others)
