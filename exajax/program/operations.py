"""A compiled program as the operations one device performs: FLOPs, bytes, collectives, loops.

FLOPs are those of matrix products (dots, GEMM and attention calls): the rest of a training step
is bound by memory, and is counted in bytes.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from exajax.program import collectives
from exajax.program.collectives import Collective
from exajax.program.hlo import Computation, Instruction, Module

FREE = frozenset(
    [
        "parameter",
        "constant",
        "tuple",
        "get-tuple-element",
        "bitcast",
        "after-all",
        "partition-id",
        "replica-id",
        "opt-barrier",
        "add-dependency",
        "copy-done",
        "domain",
    ]
)
"""Opcodes that move nothing and compute nothing when they run."""

MEMORY = frozenset(
    [
        "fusion",
        "copy",
        "copy-start",
        "transpose",
        "reshape",
        "broadcast",
        "iota",
        "convert",
        "slice",
        "dynamic-slice",
        "dynamic-update-slice",
        "concatenate",
        "pad",
        "reverse",
        "gather",
        "scatter",
        "reduce",
        "reduce-window",
        "select-and-scatter",
        "sort",
        "select",
        "compare",
        "clamp",
        "map",
        "rng",
        "rng-bit-generator",
        "rng-get-and-update-state",
        "bitcast-convert",
        "add",
        "subtract",
        "multiply",
        "divide",
        "maximum",
        "minimum",
        "negate",
        "abs",
        "sign",
        "exponential",
        "exponential-minus-one",
        "log",
        "log-plus-one",
        "sqrt",
        "rsqrt",
        "cbrt",
        "power",
        "tanh",
        "sine",
        "cosine",
        "tan",
        "atan2",
        "logistic",
        "floor",
        "ceil",
        "round-nearest-even",
        "round-nearest-afz",
        "and",
        "or",
        "xor",
        "not",
        "shift-left",
        "shift-right-arithmetic",
        "shift-right-logical",
        "is-finite",
        "reduce-precision",
        "erf",
        "remainder",
        "real",
        "imag",
        "complex",
        "popcnt",
        "count-leading-zeros",
    ]
)
"""Opcodes whose cost is the memory they read and write."""

GEMM_CALLS = "__cublas$"
ATTENTION_CALLS = "__cudnn$fmha"
SLICES = ("dynamic-slice", "slice", "gather")


@dataclass(frozen=True)
class Operation:
    """What one device does between two entries of the schedule.

    Attributes:
        name: the instruction.
        op_name: the path of JAX names it comes from, such as `jit(update)/.../mlp/dot_general`.
        kind: `matmul`, `attention`, `memory`, `collective` (waits for its result),
            `collective-start`, `collective-done` or `unpriced` (an opcode this reader does not
            know, counted by its bytes).
        flops: multiplications and additions of matrix products, each counted.
        bytes: bytes read and written.
        dtype: element type it computes in.
        collective: what is communicated, for a `collective` or a `collective-start`.
        start: the start that a `collective-done` waits for.
    """

    name: str
    op_name: str
    kind: str
    flops: float = 0.0
    bytes: int = 0
    dtype: str = ""
    collective: Collective | None = None
    start: str = ""


@dataclass(frozen=True)
class Loop:
    """A body that is run `trips` times, one after the other.

    Attributes:
        name: the instruction.
        op_name: the path of JAX names it comes from.
        trips: times, by the compiler's own count.
        body: what is run.
        trips_known: False where the compiler did not say; the body then counts once.
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
    """Returns the loops whose trips the compiler did not say, and which are counted once."""
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
        if opcode in FREE:
            continue
        if opcode == "while":
            body = module.computations[instruction.called("body")]
            count = instruction.backend_config.get("known_trip_count", {}).get("n")
            yield Loop(
                instruction.name,
                instruction.op_name,
                int(count or 1),
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
        else:
            yield _operation(instruction, computation, module, mesh_axes)


def _operation(
    instruction: Instruction,
    computation: Computation,
    module: Module,
    mesh_axes: Mapping[str, int],
) -> Operation:
    name, op_name = instruction.name, instruction.op_name
    wrapped = _wrapped_collective(instruction, module)
    if wrapped is not None:
        if instruction.opcode.endswith("-done"):
            return Operation(name, op_name, "collective-done", start=instruction.operands[0])
        read = sum(_operand(computation, operand).bytes for operand in instruction.operands)
        # A gather that is started may carry its result among its shapes, never in its operands.
        what = collectives.read(wrapped, read, mesh_axes)
        kind = "collective-start" if instruction.opcode.endswith("-start") else "collective"
        return Operation(name, wrapped.op_name or op_name, kind, collective=what)
    kind, flops = _arithmetic(instruction, computation, module)
    dtype = _factor_dtype(instruction, computation, module) if flops else ""
    return Operation(name, op_name, kind, flops, _traffic(instruction, computation, module), dtype)


def _factor_dtype(instruction: Instruction, computation: Computation, module: Module) -> str:
    """Returns the element type of the factors of a matrix product, inside a fusion too."""
    if instruction.opcode == "fusion":
        inner = module.computations[instruction.called("calls")]
        for part in inner.instructions:
            if _arithmetic(part, inner, module)[1]:
                return _factor_dtype(part, inner, module)
    return _operand(computation, instruction.operands[0]).shapes[0].dtype


def _wrapped_collective(instruction: Instruction, module: Module) -> Instruction | None:
    """Returns the collective that an instruction is, starts, ends or wraps, else None."""
    opcode = instruction.opcode
    if collectives.kind_of(instruction) or (
        opcode.endswith("-done") and opcode.removesuffix("-done") in collectives.KINDS
    ):
        return instruction
    if opcode in ("async-start", "async-done"):
        called = instruction.called("calls")
        inner = module.computations[called].root if called in module.computations else instruction
        return inner if collectives.kind_of(inner) or opcode == "async-done" else None
    return None


def _operand(computation: Computation, name: str) -> Instruction:
    return computation.by_name[name]


def _arithmetic(
    instruction: Instruction, computation: Computation, module: Module
) -> tuple[str, float]:
    """Returns the kind of an operation and its FLOPs."""
    opcode = instruction.opcode
    if opcode == "dot":
        return "matmul", _dot_flops(
            instruction, computation, instruction.numbers("lhs_contracting_dims")
        )
    if opcode == "fusion":
        inner = module.computations[instruction.called("calls")]
        flops = sum(_arithmetic(i, inner, module)[1] for i in inner.instructions)
        return ("matmul", flops) if flops else ("memory", 0.0)
    if opcode == "custom-call":
        target = instruction.text("custom_call_target", r'"([^"]*)"')
        if target.startswith(ATTENTION_CALLS):
            return "attention", _attention_flops(instruction, target)
        if target.startswith(GEMM_CALLS):
            config = instruction.backend_config.get("gemm_backend_config", {})
            numbers = config.get("dot_dimension_numbers", {})
            contracted = tuple(int(d) for d in numbers.get("lhs_contracting_dimensions", ()))
            return "matmul", _dot_flops(instruction, computation, contracted)
        return "unpriced", 0.0
    return ("memory" if opcode in MEMORY else "unpriced"), 0.0


def _dot_flops(
    instruction: Instruction, computation: Computation, contracted: tuple[int, ...]
) -> float:
    """2 x elements of the result x length of the contracted dimensions."""
    left = _operand(computation, instruction.operands[0]).shapes[0]
    inner = math.prod(left.dims[axis] for axis in contracted)
    return 2.0 * math.prod(instruction.shapes[0].dims) * inner


def _attention_flops(instruction: Instruction, target: str) -> float:
    """FLOPs of a fused attention kernel with scores [B, N, T, S] and heads of size H.

    Two products of 2 B N T S H forward; five backward, because the scores are made again
    (arXiv:2307.08691, section 4.1); half of it under a causal mask.
    """
    config = instruction.backend_config["cudnn_fmha_backend_config"]
    scores = math.prod(int(d) for d in config["intermediate_tensor_shape"]["dimensions"])
    products = 5 if "Backward" in target else 2
    causal = 0.5 if config.get("mask_type") == "CAUSAL" else 1.0
    return 2.0 * products * scores * instruction.shapes[0].dims[-1] * causal


def _traffic(instruction: Instruction, computation: Computation, module: Module) -> int:
    """Returns the bytes an operation reads and writes; slices and updates count only their part."""
    if instruction.opcode == "fusion":
        inner = module.computations[instruction.called("calls")]
        read = sum(_read_bytes(parameter, inner) for parameter in _parameters(inner))
        return read + _written_bytes(inner.root, inner)
    operands = [_operand(computation, name) for name in instruction.operands]
    if instruction.opcode in SLICES:
        return 2 * instruction.bytes
    if instruction.opcode == "dynamic-update-slice":
        return 2 * operands[1].bytes
    if instruction.opcode == "copy-start":  # its shape holds source and context too
        return 2 * operands[0].bytes
    return sum(operand.bytes for operand in operands) + instruction.bytes


def _parameters(computation: Computation) -> list[Instruction]:
    return [i for i in computation.instructions if i.opcode == "parameter"]


def _read_bytes(source: Instruction, inner: Computation) -> int:
    """Bytes of a fusion's parameter that are read: all, or the slices that are taken of it."""
    total = 0
    for user in inner.users[source.name]:
        if user.opcode == "bitcast":
            total += _read_bytes(user, inner)
        elif user.opcode in SLICES and user.operands[0] == source.name:
            total += user.bytes
        elif user.opcode == "dynamic-update-slice" and user.operands[0] == source.name:
            continue  # updated in place
        else:
            return source.bytes
    return min(total, source.bytes)


def _written_bytes(root: Instruction, inner: Computation) -> int:
    """Bytes that a fusion writes: its result, or the part of it that is updated in place."""
    if root.opcode == "tuple":
        return sum(_written_bytes(inner.by_name[name], inner) for name in root.operands)
    if root.opcode == "bitcast":
        return _written_bytes(inner.by_name[root.operands[0]], inner)
    if root.opcode == "dynamic-update-slice":
        return inner.by_name[root.operands[1]].bytes
    return root.bytes
