"""The operations of a compiled program on one device: FLOPs, bytes, collectives, loops.

FLOPs are those of matrix products (dots, GEMM and attention calls); other operations of a training
step are bound by memory, and have bytes only.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from exajax.program import hlo_collectives
from exajax.program.costs import FusedAttention, MatrixProduct, arithmetic
from exajax.program.hlo import Computation, Instruction, Module
from exajax.program.hlo_collectives import Collective
from exajax.program.traffic import host_bytes, traffic_bytes
from exajax.program.trips import trip_count

FREE = frozenset(
    """
    parameter constant tuple get-tuple-element bitcast after-all partition-id replica-id
    opt-barrier add-dependency domain
    """.split()  # noqa: SIM905 - a list of so many is a column of a page
)
"""Opcodes that take no time."""

FREE_CALLS = frozenset(
    """
    AllocateBuffer Sharding SPMDFullToShardShape SPMDShardToFullShape MoveToHost MoveToDevice
    annotate_device_placement
    """.split()  # noqa: SIM905
)
"""Targets of custom calls that take no time: annotations for the compiler, and allocation."""


@dataclass(frozen=True)
class Operation:
    """An operation of one device, in the order of the schedule.

    Attributes:
        name: name of the instruction.
        op_name: path of JAX names it comes from, such as `jit(update)/.../mlp/dot_general`.
        kind: `matmul`, `attention`, `memory`, `collective` (synchronous), `collective-start`,
            `collective-done`, `host-copy` between the memories of device and host,
            `host-copy-start`, `host-copy-done`, or `unpriced` (an unknown opcode, priced by its
            bytes).
        flops: multiplications and additions of its matrix products.
        bytes: bytes that it reads and writes; of a host copy, those over the bus.
        dtype: element type of the factors.
        products: its matrix products.
        attention: its fused attention, for an `attention`.
        collective: its collective, for a `collective` or a `collective-start`.
        start: name of the start that a `collective-done` or a `host-copy-done` belongs to.
    """

    name: str
    op_name: str
    kind: str
    flops: float = 0.0
    bytes: int = 0
    dtype: str = ""
    products: tuple[MatrixProduct, ...] = ()
    attention: FusedAttention | None = None
    collective: Collective | None = None
    start: str = ""


@dataclass(frozen=True)
class ProgramLoop:
    """A loop of the program.

    Attributes:
        name: name of the instruction.
        op_name: path of JAX names it comes from.
        trips: number of times that the body runs.
        body: operations of the body, in the order of the schedule.
        trips_known: whether the number of trips is known; if not, it is taken as 1.
    """

    name: str
    op_name: str
    trips: int
    body: tuple["Operation | ProgramLoop", ...]
    trips_known: bool = True


Program = tuple[Operation | ProgramLoop, ...]


def read_program(module: Module, mesh_axes: Mapping[str, int]) -> Program:
    """The operations of a module, in the order of its schedule.

    Args:
        module: a scheduled module.
        mesh_axes: size of each mesh axis, outermost first.
    """
    return tuple(_operations(module.computations[module.entry], module, mesh_axes))


def flatten(program: Program, times: int = 1) -> Iterator[tuple[Operation, int]]:
    """All operations of a program, each with the number of times that a step runs it."""
    for node in program:
        if isinstance(node, ProgramLoop):
            yield from flatten(node.body, times * node.trips)
        else:
            yield node, times


def total_flops(program: Program) -> float:
    """FLOPs of matrix products of one device in a step."""
    return sum(op.flops * times for op, times in flatten(program))


def total_bytes(program: Program) -> int:
    """Bytes that one device reads and writes in a step, without collectives."""
    return sum(op.bytes * times for op, times in flatten(program))


def unknown_loops(program: Program) -> list[str]:
    """Names of the loops whose number of trips is unknown, and taken as 1."""
    names = []
    for node in program:
        if isinstance(node, ProgramLoop):
            names += [] if node.trips_known else [node.name]
            names += unknown_loops(node.body)
    return names


def communicated_bytes(program: Program) -> dict[str, dict[str, int]]:
    """Sums of `Collective.bytes` in a step, by mesh axes and kind of collective."""
    totals: dict[str, dict[str, int]] = {}
    for op, times in flatten(program):
        if op.collective:
            by_kind = totals.setdefault(op.collective.axes, {})
            kind = op.collective.kind
            by_kind[kind] = by_kind.get(kind, 0) + op.collective.bytes * times
    return totals


def _operations(
    computation: Computation, module: Module, mesh_axes: Mapping[str, int]
) -> Iterator[Operation | ProgramLoop]:
    for instruction in computation.instructions:
        opcode = instruction.opcode
        if _is_free(instruction):
            continue
        if opcode == "while":
            body = module.computations[instruction.called("body")]
            count = trip_count(instruction, computation, module)
            yield ProgramLoop(
                instruction.name,
                instruction.op_name,
                1 if count is None else count,
                tuple(_operations(body, module, mesh_axes)),
                trips_known=count is not None,
            )
        elif opcode == "conditional":
            branches = [
                tuple(_operations(module.computations[name], module, mesh_axes))
                for name in instruction.branches
            ]
            # Devices may take different branches, and the slowest determines the step time.
            yield from max(branches, key=lambda b: (total_flops(b), total_bytes(b)))
        elif opcode == "call":
            callee = module.computations[instruction.called("to_apply")]
            yield from _operations(callee, module, mesh_axes)
        elif (wrapped := _wrapped_collective(instruction, module)) is not None:
            yield _communication(instruction, wrapped, computation, mesh_axes)
        elif opcode == "async-start":
            yield from _operations(
                module.computations[instruction.called("calls")], module, mesh_axes
            )
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
    """The operation of a collective, or of its start or end.

    Args:
        instruction: the instruction in the schedule.
        wrapped: the collective itself, which may be in the computation of an `async-start`.
        computation: the computation that contains the instruction.
        mesh_axes: size of each mesh axis, outermost first.
    """
    name, op_name = instruction.name, instruction.op_name
    if instruction.opcode.endswith("-done"):
        return Operation(name, op_name, "collective-done", start=instruction.operands[0])
    # Sizes come from the operands: the shapes of a start include both operands and results. The
    # further operands of a ragged exchange are space for its result, and offsets and sizes.
    ragged = wrapped.opcode.startswith("ragged")
    operands = instruction.operands[:1] if ragged else instruction.operands
    operand_bytes = sum(computation.by_name[operand].bytes for operand in operands)
    collective = hlo_collectives.read_collective(wrapped, operand_bytes, mesh_axes)
    kind = "collective-start" if instruction.opcode.endswith("-start") else "collective"
    return Operation(name, wrapped.op_name or op_name, kind, collective=collective)


def _work(
    instruction: Instruction, computation: Computation, module: Module
) -> Iterator[Operation]:
    """The operation of an instruction on its device, at its start if it is asynchronous."""
    name, op_name, opcode = instruction.name, instruction.op_name, instruction.opcode
    is_start = opcode.endswith("-start")
    if opcode.endswith("-done"):
        if _reaches_host(computation.by_name[instruction.operands[0]], computation):
            yield Operation(name, op_name, "host-copy-done", start=instruction.operands[0])
        return
    if is_start and opcode != "copy-start":  # short for an `async-start` of a single instruction
        instruction = _unwrapped(instruction, computation)
    what = arithmetic(instruction, computation, module)
    if what.kind == "memory" and _reaches_host(instruction, computation):
        kind = "host-copy-start" if is_start else "host-copy"
        yield Operation(name, op_name, kind, bytes=host_bytes(instruction, computation, module))
        return
    if what.products and not op_name:
        op_name = _name_of_product(instruction, module)
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


def _name_of_product(instruction: Instruction, module: Module) -> str:
    """The path of JAX names of the first product in a fusion that has no name of its own.

    The XLA of jaxlib 0.12 names the calls of cuBLAS and not the fusions it puts around them.
    """
    inside = module.computations.get(instruction.called("calls"))
    if instruction.op_name or inside is None:
        return instruction.op_name
    products = (part for part in inside.instructions if arithmetic(part, inside, module).products)
    names = (_name_of_product(part, module) for part in products)
    return next(filter(None, names), "")


def _reaches_host(instruction: Instruction, computation: Computation) -> bool:
    """Whether an instruction reads or writes the memory of the host."""
    touched = (instruction, *(computation.by_name[name] for name in instruction.operands))
    return any(shape.host for array in touched for shape in array.shapes)


def _unwrapped(instruction: Instruction, computation: Computation) -> Instruction:
    """The synchronous form of a start, whose shapes are those of operands, results and context."""
    operands = sum(len(computation.by_name[name].shapes) for name in instruction.operands)
    opcode = instruction.opcode.removesuffix("-start")
    return replace(instruction, opcode=opcode, shapes=instruction.shapes[operands:-1])


def _wrapped_collective(instruction: Instruction, module: Module) -> Instruction | None:
    """The collective that an instruction is, starts or ends; None for any other instruction."""
    opcode = instruction.opcode
    if opcode.removesuffix("-start").removesuffix("-done") in hlo_collectives.KIND_OF_OPCODE:
        return instruction
    if opcode in ("async-start", "async-done"):
        called = module.computations.get(instruction.called("calls"))
        return called.root if called and hlo_collectives.kind_of(called.root) else None
    return None
