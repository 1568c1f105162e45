"""Bytes that an operation reads and writes; slices, updates and gathers touch only a part."""

from collections.abc import Iterator

from exajax.program.hlo import Computation, Instruction, Module, Shape

SLICES = frozenset({"dynamic-slice", "slice", "gather"})
UPDATES = frozenset({"dynamic-update-slice", "scatter"})

ArrayBytes = Iterator[tuple[Shape, int]]
"""Arrays that an operation reads or writes, each with the bytes that it touches."""


def traffic_bytes(instruction: Instruction, computation: Computation, module: Module) -> int:
    """Bytes that an operation reads and writes in memory, without any cache."""
    return sum(count for _, count in _array_bytes(instruction, computation, module))


def host_bytes(instruction: Instruction, computation: Computation, module: Module) -> int:
    """Bytes that an operation reads and writes in the host's memory, over the bus."""
    return sum(
        count for shape, count in _array_bytes(instruction, computation, module) if shape.host
    )


def _array_bytes(instruction: Instruction, computation: Computation, module: Module) -> ArrayBytes:
    opcode = instruction.opcode
    operands = [computation.by_name[name] for name in dict.fromkeys(instruction.operands)]
    if opcode == "fusion":
        yield from _fusion_bytes(module.computations[instruction.called("calls")])
    elif opcode in SLICES:
        result = instruction.shapes[0]
        yield operands[0].shapes[0], result.bytes
        yield result, result.bytes
    elif opcode in UPDATES:
        yield from _update_bytes(instruction, computation)
    elif opcode == "copy-start":  # its results are the copy, the source again, and a context
        yield operands[0].shapes[0], operands[0].bytes
        yield instruction.shapes[0], operands[0].bytes
    else:
        for operand in operands:
            yield from ((shape, shape.bytes) for shape in operand.shapes)
        yield from ((shape, shape.bytes) for shape in _result_arrays(instruction, computation))


def _result_arrays(instruction: Instruction, computation: Computation) -> list[Shape]:
    """Arrays that an instruction writes; unused results of a custom call are its scratch space."""
    users = computation.users[instruction.name]
    if instruction.opcode != "custom-call" or {user.opcode for user in users} != {
        "get-tuple-element"
    }:
        return list(instruction.shapes)
    return [instruction.shapes[index] for index in {int(user.text("index")) for user in users}]


def _update_pairs(update: Instruction, computation: Computation) -> list[tuple[Shape, Shape]]:
    """Arrays that an instruction updates in part, each with the new values."""
    operands = [computation.by_name[name].shapes[0] for name in update.operands]
    if update.opcode == "dynamic-update-slice":
        return [(operands[0], operands[1])]
    count = (len(operands) - 1) // 2  # operands are arrays, one array of indices, updates
    return list(zip(operands[:count], operands[count + 1 :], strict=True))


def _update_bytes(update: Instruction, computation: Computation) -> ArrayBytes:
    for target, values in _update_pairs(update, computation):
        yield values, values.bytes
        yield from _in_place_bytes(update, target, values)


def _in_place_bytes(update: Instruction, target: Shape, values: Shape) -> ArrayBytes:
    """Bytes of an in-place update: only a part is written; a scatter adds, so it reads it too."""
    yield target, values.bytes * (2 if update.opcode == "scatter" else 1)


def _fusion_bytes(inner: Computation) -> ArrayBytes:
    results = list(_result_instructions(inner.root, inner))
    in_place = {result.name for result in results if _is_in_place(result, inner)}
    shares = _read_shares(inner, in_place)
    for parameter in inner.instructions:
        if parameter.opcode == "parameter":
            shape = parameter.shapes[0]
            yield shape, round(shares[parameter.name] * shape.bytes)
    for result in results:
        if result.name in in_place:
            for target, values in _update_pairs(result, inner):
                yield from _in_place_bytes(result, target, values)
        else:
            yield from ((shape, shape.bytes) for shape in result.shapes)


def _result_instructions(root: Instruction, inner: Computation) -> Iterator[Instruction]:
    """Instructions that compute the results of a fusion, through tuples and bitcasts."""
    if root.opcode in ("tuple", "bitcast"):
        for name in root.operands:
            yield from _result_instructions(inner.by_name[name], inner)
    else:
        yield root


def _is_in_place(result: Instruction, inner: Computation) -> bool:
    """Whether a result of a fusion is one of its parameters, updated in part."""
    if result.opcode not in UPDATES:
        return False
    target = inner.by_name[result.operands[0]]
    while target.opcode == "bitcast":
        target = inner.by_name[target.operands[0]]
    return target.opcode == "parameter"


def _read_shares(inner: Computation, in_place: set[str]) -> dict[str, float]:
    """Share of each array in a fusion that its results depend on, from 0 to 1.

    A fusion computes each element of its results from only those elements that it depends on: an
    array that is only sliced is read only where the slices are.
    """
    shares = dict.fromkeys(inner.by_name, 0.0)
    shares[inner.root.name] = 1.0
    for instruction in reversed(inner.instructions):  # users before their operands
        share = shares[instruction.name]
        for index, name in enumerate(instruction.operands):
            operand = inner.by_name[name].shapes[0]
            if index == 0 and instruction.name in in_place:
                needed = 0.0  # `_in_place_bytes` counts it
            elif index == 0 and instruction.opcode in SLICES:
                needed = share * instruction.shapes[0].elements / max(1, operand.elements)
            elif operand.elements >= instruction.shapes[0].elements:
                needed = share
            else:  # broadcast, or one of several operands of a concatenation
                needed = 1.0 if share else 0.0
            shares[name] = min(1.0, shares[name] + needed)
    return shares
