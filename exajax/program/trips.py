"""How often a loop runs: by the compiler's own count, else by its counter."""

import operator
from collections.abc import Callable

from exajax.program.hlo import Computation, Instruction, Module

MOST = 1 << 16
"""Trips after which counting is given up."""

ALIKE = frozenset({"copy", "bitcast", "convert", "reshape"})
"""Opcodes that hand a number on."""

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


def trips(loop: Instruction, computation: Computation, module: Module) -> int | None:
    """Returns how often a `while` runs its body, None where nothing says it.

    XLA writes the count down where it knows it, and loses it where it takes the first trip out of
    the loop. The counter is still there: a number that is known at first, that the body makes the
    next of, and that the condition goes by.
    """
    known = loop.backend_config.get("known_trip_count", {}).get("n")
    if known is not None:
        return int(known)
    place = loop.backend_config.get("known_induction_variable", {}).get("tuple_index")
    start = computation.by_name.get(loop.operands[0])
    if place is None or start is None or start.opcode != "tuple":
        return None
    condition = module.computations[loop.called("condition")]
    body = module.computations[loop.called("body")]
    if body.root.opcode != "tuple":
        return None
    following = body.by_name[body.root.operands[int(place)]]
    counter = _number(computation.by_name[start.operands[int(place)]], computation, module, {})
    for count in range(MOST):
        if counter is None:
            return None
        given = {(0, int(place)): counter}
        goes_on = _number(condition.root, condition, module, given)
        if not goes_on:
            return None if goes_on is None else count
        before, counter = counter, _number(following, body, module, given)
        if counter == before:
            return None
    return None


def _number(
    made: Instruction, computation: Computation, module: Module, given: dict[tuple[int, int], int]
) -> int | None:
    """Returns the whole number that an instruction makes, None where it is not known.

    Args:
        made: the instruction.
        computation: the one that it is in.
        module: the one that computation is in.
        given: what is known of the parameters, by number and by place in a tuple.
    """
    if made.opcode == "constant":
        return _literal(made.literal)
    if made.opcode == "parameter":
        return given.get((int(made.literal), 0))
    sources = [computation.by_name[name] for name in made.operands]
    if made.opcode == "get-tuple-element":
        if sources[0].opcode != "parameter":
            return None
        return given.get((int(sources[0].literal), int(made.text("index"))))
    numbers = [_number(source, computation, module, given) for source in sources]
    known = [number for number in numbers if number is not None]
    if made.opcode == "fusion":
        inner = module.computations[made.called("calls")]
        passed = {(i, 0): number for i, number in enumerate(numbers) if number is not None}
        return _number(inner.root, inner, module, passed)
    if made.opcode in ALIKE and len(known) == 1:
        return known[0]
    if len(known) != 2 or len(numbers) != 2:
        return None
    if made.opcode in ARITHMETIC:
        return ARITHMETIC[made.opcode](*known)
    if made.opcode == "compare":
        return int(COMPARISONS[made.text("direction")](*known))
    return None


def _literal(text: str) -> int | None:
    if text in ("true", "false"):
        return int(text == "true")
    try:
        return int(text)
    except ValueError:
        return None
