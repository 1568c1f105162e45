"""Trip counts of loops: the compiler's own, else computed by evaluating the loop's counter."""

import operator
from collections.abc import Callable

from exajax.program.hlo import Computation, Instruction, Module

MOST = 1 << 16
"""Limit on the trips that are evaluated."""

IDENTITIES = frozenset({"copy", "bitcast", "convert", "reshape"})
"""Opcodes whose value equals that of their operand."""

ARITHMETIC: dict[str, Callable[[int, int], int]] = {
    "add": operator.add,
    "subtract": operator.sub,
    "multiply": operator.mul,
    "minimum": min,
    "maximum": max,
}

COMPARISONS: dict[str, Callable[[int, int], bool]] = {
    name.upper(): getattr(operator, name) for name in ("lt", "le", "gt", "ge", "eq", "ne")
}


def trip_count(loop: Instruction, computation: Computation, module: Module) -> int | None:
    """Number of times that a `while` runs its body; None if it is unknown.

    XLA annotates the trip count, but loses it where it peels the first trip off a loop. The counter
    remains: it has a known first value, the body computes its next one, and the condition depends
    on it.

    Args:
        loop: the `while`.
        computation: the computation that contains it.
        module: the module that contains the computation.
    """
    known = loop.backend_config.get("known_trip_count", {}).get("n")
    if known is not None:
        return int(known)
    index = loop.backend_config.get("known_induction_variable", {}).get("tuple_index")
    start = computation.by_name.get(loop.operands[0])
    if index is None or start is None or start.opcode != "tuple":
        return None
    condition = module.computations[loop.called("condition")]
    body = module.computations[loop.called("body")]
    if body.root.opcode != "tuple":
        return None
    next_counter = body.by_name[body.root.operands[int(index)]]
    counter = _evaluate(computation.by_name[start.operands[int(index)]], computation, module, {})
    for count in range(MOST):
        if counter is None:
            return None
        parameters = {(0, int(index)): counter}
        continues = _evaluate(condition.root, condition, module, parameters)
        if not continues:
            return None if continues is None else count
        previous, counter = counter, _evaluate(next_counter, body, module, parameters)
        if counter == previous:
            return None
    return None


def _evaluate(
    instruction: Instruction,
    computation: Computation,
    module: Module,
    parameters: dict[tuple[int, int], int],
) -> int | None:
    """Integer value of an instruction; None if it is unknown.

    Args:
        instruction: the instruction.
        computation: the computation that contains it.
        module: the module that contains the computation.
        parameters: known values, by number of the parameter and index in its tuple.
    """
    opcode = instruction.opcode
    if opcode == "constant":
        return _parse_literal(instruction.literal)
    if opcode == "parameter":
        return parameters.get((int(instruction.literal), 0))
    operands = [computation.by_name[name] for name in instruction.operands]
    if opcode == "get-tuple-element":
        if operands[0].opcode != "parameter":
            return None
        return parameters.get((int(operands[0].literal), int(instruction.text("index"))))
    numbers = [_evaluate(operand, computation, module, parameters) for operand in operands]
    known = [number for number in numbers if number is not None]
    if opcode == "fusion":
        inner = module.computations[instruction.called("calls")]
        arguments = {(i, 0): number for i, number in enumerate(numbers) if number is not None}
        return _evaluate(inner.root, inner, module, arguments)
    if opcode in IDENTITIES and len(known) == 1:
        return known[0]
    if len(known) != 2 or len(numbers) != 2:
        return None
    if opcode in ARITHMETIC:
        return ARITHMETIC[opcode](*known)
    if opcode == "compare":
        return int(COMPARISONS[instruction.text("direction")](*known))
    return None


def _parse_literal(text: str) -> int | None:
    if text in ("true", "false"):
        return int(text == "true")
    try:
        return int(text)
    except ValueError:
        return None
