"""What one instruction costs: FLOPs of matrix products, and bytes read and written."""

import math

from exajax.program.hlo import Computation, Instruction, Module

MEMORY = frozenset(
    """
    fusion copy copy-start transpose reshape broadcast iota convert slice dynamic-slice
    dynamic-update-slice concatenate pad reverse gather scatter reduce reduce-window
    select-and-scatter sort select compare clamp map rng rng-bit-generator
    rng-get-and-update-state bitcast-convert add subtract multiply divide maximum minimum negate
    abs sign exponential exponential-minus-one log log-plus-one sqrt rsqrt cbrt power tanh sine
    cosine tan atan2 logistic floor ceil round-nearest-even round-nearest-afz and or xor not
    shift-left shift-right-arithmetic shift-right-logical is-finite reduce-precision erf remainder
    real imag complex popcnt count-leading-zeros
    """.split()  # noqa: SIM905 - a list of so many is a column of a page
)
"""Opcodes whose cost is the memory they read and write."""

GEMM_CALLS = "__cublas$"
ATTENTION_CALLS = "__cudnn$fmha"
SLICES = ("dynamic-slice", "slice", "gather")


def arithmetic(
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
        flops = sum(arithmetic(i, inner, module)[1] for i in inner.instructions)
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
    left = computation.by_name[instruction.operands[0]].shapes[0]
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


def traffic_bytes(instruction: Instruction, computation: Computation, module: Module) -> int:
    """Returns the bytes an operation reads and writes; slices and updates count only their part."""
    if instruction.opcode == "fusion":
        inner = module.computations[instruction.called("calls")]
        read = sum(_read_bytes(parameter, inner) for parameter in _parameters(inner))
        return read + _written_bytes(inner.root, inner)
    operands = [computation.by_name[name] for name in instruction.operands]
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


def factor_dtype(instruction: Instruction, computation: Computation, module: Module) -> str:
    """Returns the element type of the factors of a matrix product, inside a fusion too."""
    if instruction.opcode == "fusion":
        inner = module.computations[instruction.called("calls")]
        for part in inner.instructions:
            if arithmetic(part, inner, module)[1]:
                return factor_dtype(part, inner, module)
    return computation.by_name[instruction.operands[0]].shapes[0].dtype
