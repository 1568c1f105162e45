"""Detection of losses that divide by a sum over their batch, such as a hand-written masked mean.

`(values * mask).sum() / mask.sum()` is not a mean of equally weighted samples: its mean over two
micro-batches differs from its value for both together. Such a loss is recognised in the traced
program, where it divides by a scalar that is computed from the batch.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax

from exajax.spmd.jaxprs import Jaxpr, JaxprEqn, Literal, carry_operands, subprograms

Tree = Any

DIVISIONS = {"div": 1, "rem": 1, "rsqrt": 0, "integer_pow": 0, "pow": 0}
"""Index of the operand that is a divisor, by operation; for powers if the exponent is negative."""

VARIES = ("iota", "concatenate", "pad", "random_bits", "random_unwrap")
"""Operations whose result can have different elements although those of the operands are equal."""


@dataclass(frozen=True)
class Dependence:
    """What a value of a traced program depends on.

    Attributes:
        batch: whether on the batch.
        others: whether on parameters, or on the stream of a pipeline.
        uniform: whether it is a scalar, or an array of equal elements.
    """

    batch: bool = False
    others: bool = False
    uniform: bool = False

    @classmethod
    def of(cls, operands: Sequence["Dependence"]) -> "Dependence":
        """The dependence of the result of an elementwise operation."""
        return cls(
            any(x.batch for x in operands),
            any(x.others for x in operands),
            bool(operands) and all(x.uniform for x in operands),
        )

    @property
    def varying(self) -> "Dependence":
        """The same, of an array whose elements may differ."""
        return Dependence(self.batch, self.others)


def divides_by_the_batch(loss: Callable[..., Any], others: Tree, batch: Tree) -> bool:
    """Whether a loss divides by a scalar that depends on its batch alone.

    Division by a value per sample (the sum of a softmax), or by one that also depends on the
    parameters, does not count.

    Args:
        loss: `loss(*others, batch)`.
        others: shapes of its other arguments: parameters, or the stream of a pipeline.
        batch: shapes of the batch.
    """
    jaxpr = jax.make_jaxpr(loss)(*others, batch).jaxpr
    arrays = len(jax.tree.leaves(batch))
    inputs = [Dependence(others=True)] * (len(jaxpr.invars) - arrays)
    inputs += [Dependence(batch=True)] * arrays
    return _propagate(jaxpr, inputs)[1]


def _propagate(jaxpr: Jaxpr, inputs: Sequence[Dependence]) -> tuple[list[Dependence], bool]:
    """Dependences of a program's results, and whether it divides by a scalar of the batch.

    Args:
        jaxpr: the program.
        inputs: dependence of each of its inputs.
    """
    dependences: dict[Any, Dependence] = dict(zip(jaxpr.invars, inputs, strict=True))

    def dependence(value: Any) -> Dependence:
        if isinstance(value, Literal):
            return Dependence(uniform=True)
        known = dependences.get(value, Dependence())
        return Dependence(known.batch, known.others, known.uniform or value.aval.size == 1)

    divides = False
    for equation in jaxpr.eqns:
        operands = [dependence(value) for value in equation.invars]
        divides |= _divides(equation, operands)
        results = [Dependence.of(operands)] * len(equation.outvars)
        if equation.primitive.name in VARIES:
            results = [result.varying for result in results]
        if equation.primitive.name == "scan":
            results = _propagate_scan(equation, operands)
        else:
            for inner in subprograms(equation):
                same = len(inner.invars) == len(operands)
                anything = Dependence.of(operands).varying
                inner_inputs = operands if same else [anything] * len(inner.invars)
                inner_results, inner_divides = _propagate(inner, inner_inputs)
                divides |= inner_divides
                # The result of a branch may depend on any operand.
                results = inner_results if same else [anything] * len(results)
        dependences.update(zip(equation.outvars, results, strict=True))
    return [dependence(value) for value in jaxpr.outvars], divides


def _propagate_scan(equation: JaxprEqn, operands: Sequence[Dependence]) -> list[Dependence]:
    """Dependences of a scan's results.

    Divisions within the body are ignored: a scalar of one iteration may be that of one sample.
    """
    (body,) = subprograms(equation)
    carry = carry_operands(equation)
    inputs = [operand.varying for operand in operands]
    while True:  # until the dependence of the carry no longer changes
        results, _ = _propagate(body, inputs)
        merged = [Dependence.of(pair).varying for pair in zip(inputs[carry], results, strict=False)]
        if merged == inputs[carry]:
            return [result.varying for result in results]
        inputs[carry] = merged


def _divides(equation: JaxprEqn, operands: Sequence[Dependence]) -> bool:
    name = equation.primitive.name
    if name not in DIVISIONS or equation.params.get("y", -1) > 0:
        return False
    divisor = operands[DIVISIONS[name]]
    return divisor.batch and divisor.uniform and not divisor.others
