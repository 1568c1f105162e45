"""A compiled program as the operations one device performs: FLOPs, bytes, collectives, loops.

FLOPs are those of matrix products (dots, GEMM and attention calls): the rest of a training step
is bound by memory, and is counted in bytes.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from exajax.program import collectives
from exajax.program.collectives import Collective
from exajax.program.costs import Attention, Product, arithmetic
from exajax.program.hlo import Computation, Instruction, Module
from exajax.program.traffic import host_bytes, traffic_bytes
from exajax.program.trips import trips

FREE = frozenset(
    """
    parameter constant tuple get-tuple-element bitcast after-all partition-id replica-id
    opt-barrier add-dependency domain
    """.split()  # noqa: SIM905 - a list of so many is a column of a page
)
"""Opcodes that move nothing and compute nothing when they run."""

FREE_CALLS = frozenset(
    """
    AllocateBuffer Sharding SPMDFullToShardShape SPMDShardToFullShape MoveToHost MoveToDevice
    annotate_device_placement
    """.split()  # noqa: SIM905
)
"""Targets of custom calls that only tell the compiler something, or set memory aside."""


@dataclass(frozen=True)
class Operation:
    """What one device does between two entries of the schedule.

    Attributes:
        name: the instruction.
        op_name: the path of JAX names it comes from, such as `jit(update)/.../mlp/dot_general`.
        kind: `matmul`, `attention`, `memory`, `collective` (waits for its result),
            `collective-start`, `collective-done`, `host-copy` between the memories of device and
            host, `host-copy-start`, `host-copy-done`, or `unpriced` (an opcode this reader does
            not know, counted by its bytes).
        flops: multiplications and additions of matrix products, each counted.
        bytes: bytes read and written; of a host copy those that cross the bus.
        dtype: element type of the factors.
        products: the matrix products among them.
        attention: the fused attention, for an `attention`.
        collective: what is communicated, for a `collective` or a `collective-start`.
        start: the start that a `collective-done` or a `host-copy-done` waits for.
    """

    name: str
    op_name: str
    kind: str
    flops: float = 0.0
    bytes: int = 0
    dtype: str = ""
    products: tuple[Product, ...] = ()
    attention: Attention | None = None
    collective: Collective | None = None
    start: str = ""


@dataclass(frozen=True)
class Loop:
    """A body that is run `trips` times, one after the other.

    Attributes:
        name: the instruction.
        op_name: the path of JAX names it comes from.
        trips: times.
        body: what is run.
        trips_known: False where nothing says how often; the body then counts once.
    """

    name: str
    op_name: str
    trips: int
    body: tuple["Operation | Loop", ...]
    trips_known: bool = True


Program = tuple[Operation | Loop, ...]


def read(module: Module, mesh_axes: Mapping[str, int]) -> Program:
    """Returns the operations of a module in the order of its schedule.

    Args:
        module: a scheduled module.
        mesh_axes: size of each mesh axis, outermost first.
    """
    return tuple(_walk(module.computations[module.entry], module, mesh_axes))


def flatten(program: Program, times: int = 1) -> Iterator[tuple[Operation, int]]:
    """Yields every operation once, with how often a step runs it."""
    for node in program:
        if isinstance(node, Loop):
            yield from flatten(node.body, times * node.trips)
        else:
            yield node, times


def total_flops(program: Program) -> float:
    """Returns the FLOPs of matrix products that one device performs in a step."""
    return sum(op.flops * times for op, times in flatten(program))


def total_bytes(program: Program) -> int:
    """Returns the bytes that one device reads and writes in a step, collectives left out."""
    return sum(op.bytes * times for op, times in flatten(program))


def unknown_loops(program: Program) -> list[str]:
    """Returns the loops of which nothing says how often they run, and which are counted once."""
    found = []
    for node in program:
        if isinstance(node, Loop):
            found += [] if node.trips_known else [node.name]
            found += unknown_loops(node.body)
    return found


def communicated_bytes(program: Program) -> dict[str, dict[str, int]]:
    """Returns bytes by mesh axes and kind of collective, whole arrays as in `Collective.bytes`."""
    totals: dict[str, dict[str, int]] = {}
    for op, times in flatten(program):
        if op.collective:
            by_kind = totals.setdefault(op.collective.axes, {})
            kind = op.collective.kind
            by_kind[kind] = by_kind.get(kind, 0) + op.collective.bytes * times
    return totals


def _walk(
    computation: Computation, module: Module, mesh_axes: Mapping[str, int]
) -> Iterator[Operation | Loop]:
    for instruction in computation.instructions:
        opcode = instruction.opcode
        if _is_free(instruction):
            continue
        if opcode == "while":
            body = module.computations[instruction.called("body")]
            count = trips(instruction, computation, module)
            yield Loop(
                instruction.name,
                instruction.op_name,
                1 if count is None else count,
                tuple(_walk(body, module, mesh_axes)),
                trips_known=count is not None,
            )
        elif opcode == "conditional":
            branches = [
                tuple(_walk(module.computations[name], module, mesh_axes))
                for name in instruction.branches
            ]
            # Devices may take different ones, and the step waits for the slowest.
            yield from max(branches, key=lambda b: (total_flops(b), total_bytes(b)))
        elif opcode == "call":
            callee = module.computations[instruction.called("to_apply")]
            yield from _walk(callee, module, mesh_axes)
        elif (wrapped := _wrapped_collective(instruction, module)) is not None:
            yield _communication(instruction, wrapped, computation, mesh_axes)
        elif opcode == "async-start":
            yield from _walk(module.computations[instruction.called("calls")], module, mesh_axes)
        else:
            yield from _work(instruction, computation, module)


def _is_free(instruction: Instruction) -> bool:
    if instruction.opcode == "custom-call":
        return instruction.text("custom_call_target", r'"([^"]*)"') in FREE_CALLS
    return instruction.opcode in FREE


def _communication(
    instruction: Instruction,
    wrapped: Instruction,
    computation: Computation,
    mesh_axes: Mapping[str, int],
) -> Operation:
    """Returns a collective, its start or its end; `wrapped` says which devices take part."""
    name, op_name = instruction.name, instruction.op_name
    if instruction.opcode.endswith("-done"):
        return Operation(name, op_name, "collective-done", start=instruction.operands[0])
    # A gather that is started may carry its result among its shapes, never in its operands; and
    # a ragged exchange is given room for its result, and who gets what, as further operands.
    ragged = wrapped.opcode.startswith("ragged")
    operands = instruction.operands[:1] if ragged else instruction.operands
    read = sum(computation.by_name[operand].bytes for operand in operands)
    sent = collectives.read(wrapped, read, mesh_axes)
    kind = "collective-start" if instruction.opcode.endswith("-start") else "collective"
    return Operation(name, wrapped.op_name or op_name, kind, collective=sent)


def _work(
    instruction: Instruction, computation: Computation, module: Module
) -> Iterator[Operation]:
    """Yields what an instruction does on its device, all of it where it is started."""
    name, op_name, opcode = instruction.name, instruction.op_name, instruction.opcode
    started = opcode.endswith("-start")
    if opcode.endswith("-done"):
        if _reaches_host(computation.by_name[instruction.operands[0]], computation):
            yield Operation(name, op_name, "host-copy-done", start=instruction.operands[0])
        return
    if started and opcode != "copy-start":  # short for an `async-start` of a single instruction
        instruction = _unwrapped(instruction, computation)
    what = arithmetic(instruction, computation, module)
    if what.kind == "memory" and _reaches_host(instruction, computation):
        kind = "host-copy-start" if started else "host-copy"
        yield Operation(name, op_name, kind, bytes=host_bytes(instruction, computation, module))
        return
    yield Operation(
        name,
        op_name,
        what.kind,
        what.flops,
        traffic_bytes(instruction, computation, module),
        what.dtype,
        what.products,
        what.attention,
    )


def _reaches_host(instruction: Instruction, computation: Computation) -> bool:
    """Returns whether an instruction reads or writes the memory of the host."""
    made = (instruction, *(computation.by_name[name] for name in instruction.operands))
    return any(shape.host for part in made for shape in part.shapes)


def _unwrapped(instruction: Instruction, computation: Computation) -> Instruction:
    """Returns what a start starts: it shows the shapes of operands, results and a context."""
    before = sum(len(computation.by_name[name].shapes) for name in instruction.operands)
    opcode = instruction.opcode.removesuffix("-start")
    return replace(instruction, opcode=opcode, shapes=instruction.shapes[before:-1])


def _wrapped_collective(instruction: Instruction, module: Module) -> Instruction | None:
    """Returns the collective that an instruction is, starts, ends or wraps, else None."""
    opcode = instruction.opcode
    if opcode.removesuffix("-start").removesuffix("-done") in collectives.KINDS:
        return instruction
    if opcode in ("async-start", "async-done"):
        called = module.computations.get(instruction.called("calls"))
        return called.root if called and collectives.kind_of(called.root) else None
    return None
