"""Roles of the values of a compiled program (gradients, activations, temporaries), by their origin.

JAX names every operation by its path through the program, which autodiff marks
(`exajax.program.op_names`). Values that a loop stacks or carries have only the names of tuples, and
are traced to the instruction that computes them.
"""

import re
from collections.abc import Iterator
from typing import NamedTuple

from exajax.program import op_names
from exajax.program.hlo import Computation, Instruction, Module, Shape

IDENTITIES = ("bitcast", "copy", "copy-start", "copy-done", "fusion-done", "opt-barrier", "reshape")
"""Opcodes whose value equals that of their first operand."""

STATE = {"params": "parameters", "optimizer": "optimizer"}


class Origin(NamedTuple):
    """The role of a value, and the operation that computes it.

    Attributes:
        role: `gradients`, `activations` or `temporaries`.
        path: scopes and operation, such as `layers/mlp/dot_general`.
        op_name: the full path of JAX names; empty if the compiler inserted it.
    """

    role: str
    path: str
    op_name: str


class Producer(NamedTuple):
    """The instruction that computes a value.

    Attributes:
        opcode: opcode of the instruction.
        op_name: its path of JAX names; for a stacked value, that of the part that is stacked.
        shapes: result of the instruction.
        stacked: whether each trip of a loop writes a part of the value.
        carried: whether each trip of a loop passes the value to the next.
    """

    opcode: str
    op_name: str
    shapes: tuple[Shape, ...]
    stacked: bool
    carried: bool


class Origins:
    """The origins of the values of a module."""

    def __init__(self, module: Module):
        self.module = module
        self._home = {
            instruction.name: computation
            for computation in module.computations.values()
            for instruction in computation.instructions
        }
        self._loops = {
            instruction.called("body"): instruction
            for computation in module.computations.values()
            for instruction in computation.instructions
            if instruction.opcode == "while"
        }
        self._parameters = {shape.dims for role, _, shape in self.inputs() if role == "parameters"}

    def inputs(self) -> Iterator[tuple[str, str, Shape]]:
        """Role, path and shape of every input of the program."""
        for instruction in self.module.computations[self.module.entry].instructions:
            if instruction.opcode == "parameter" and instruction.shapes:
                name = re.sub(r"\\(.)", r"\1", instruction.op_name).removeprefix("state.")
                kind, *keys = re.findall(r"\w+", name) or [""]
                path = "/".join(key for key in keys if key not in ("kernel", "value"))
                yield STATE.get(kind, "batch"), path, instruction.shapes[0]

    def of(self, value: str) -> Origin:
        """The origin of a value with XLA's name, such as `while.5{3}`."""
        name, _, subscript = value.rstrip("}").partition("{")
        if name not in self._home:
            return Origin("temporaries", name, "")
        index = tuple(int(number) for number in subscript.split(",") if number)
        producer = self._trace(name, self._home[name], index, frozenset(), False)
        path = op_names.readable(producer.op_name) or producer.opcode
        return Origin(self._role(producer), path, producer.op_name)

    def _role(self, producer: Producer) -> str:
        """The role of a value.

        Values that the forward pass stacks in a loop, or computes outside of the loop over layers,
        are activations saved for backward. Values that the backward pass stacks are gradients of
        layers. Other values that outlive it, and sums over micro-batches, are gradients if they
        have the shape of a parameter.
        """
        path = producer.op_name
        backward, forward = op_names.is_backward(path), op_names.is_differentiated(path)
        looped = op_names.is_looped(path)
        if "optimizer/" in path or producer.opcode.startswith("all-gather"):
            return "temporaries"
        if producer.stacked and forward:
            return "gradients" if backward else "activations"
        if forward and not backward:
            return "temporaries" if looped or producer.carried else "activations"
        outlives = producer.carried or looped != backward
        if outlives and any(
            _may_be_gradient_of(shape.dims, parameter)
            for shape in producer.shapes
            for parameter in self._parameters
        ):
            return "gradients"
        return "temporaries"

    def _trace(
        self,
        name: str,
        home: Computation,
        index: tuple[int, ...],
        visited: frozenset[str],
        carried: bool,
    ) -> Producer:
        """Traces a value through tuples, loops and copies to the instruction that computes it.

        Args:
            name: the instruction that has the value, or a tuple that contains it.
            home: the computation of the instruction.
            index: index of the value in the tuple.
            visited: bodies of loops that were entered on the way.
            carried: whether a loop carries the value.
        """
        instruction = home.by_name[name]
        opcode, operands = instruction.opcode, instruction.operands
        if opcode == "get-tuple-element":
            index = (int(instruction.text("index")), *index)
            return self._trace(operands[0], home, index, visited, carried)
        if opcode == "tuple" and index:
            return self._trace(operands[index[0]], home, index[1:], visited, carried)
        if opcode in IDENTITIES and operands:
            return self._trace(operands[0], home, index, visited, carried)
        body = instruction.called("body") if opcode == "while" else home.name
        loops = opcode == "while" or (opcode == "parameter" and body in self._loops)
        if loops and index and body not in visited:
            inner = self.module.computations[body]
            producer = self._trace(inner.root.name, inner, index, visited | {body}, True)
            if producer.opcode != "parameter":
                return producer
            loop = self._loops[body]  # the body passes it on unchanged, so the value is the initial
            return self._trace(
                loop.operands[0], self._home[loop.name], index, visited | {body}, carried
            )
        return self._producer_at(instruction, home, index, carried)

    def _producer_at(
        self, instruction: Instruction, home: Computation, index: tuple[int, ...], carried: bool
    ) -> Producer:
        root, inner = instruction, home
        if instruction.opcode in ("fusion", "fusion-start"):
            inner = self.module.computations[instruction.called("calls")]
            root = inner.root
            if root.opcode == "tuple" and index:
                root = inner.by_name[root.operands[index[0]]]
            root = _without_copies(root, inner)
        stacked = root.opcode == "dynamic-update-slice"
        named = _autodiff_path(root.operands[1], inner) if stacked else ""
        op_name = named or root.op_name or instruction.op_name
        return Producer(instruction.opcode, op_name, instruction.shapes, stacked, carried)


def _autodiff_path(name: str, home: Computation) -> str:
    """The path of the nearest instruction, from one through its operands, that autodiff has marked.

    Empty if there is none in the computation.
    """
    near, visited = [name], {name}
    for name in near:
        instruction = home.by_name[name]
        if op_names.is_differentiated(instruction.op_name):
            return instruction.op_name
        near += [operand for operand in instruction.operands if operand not in visited]
        visited |= {*instruction.operands}
    return ""


def _without_copies(instruction: Instruction, home: Computation) -> Instruction:
    """The instruction that a nameless copy or bitcast is a copy of."""
    while instruction.opcode in IDENTITIES and instruction.operands and not instruction.op_name:
        instruction = home.by_name[instruction.operands[0]]
    return instruction


def _may_be_gradient_of(dims: tuple[int, ...], parameter: tuple[int, ...]) -> bool:
    """Whether an array may be the gradient of a parameter, by their shapes on a device.

    Axes of size 1 are ignored, and one axis may differ by a factor, since a mesh axis may divide it
    in only one of the two.
    """
    left, right = (sorted(dim for dim in shape if dim > 1) for shape in (dims, parameter))
    if len(left) != len(right):
        return False
    different = [(a, b) for a, b in zip(left, right, strict=True) if a != b]
    at_most_one = len(different) <= min(1, len(left) - 1)
    return at_most_one and all(max(pair) % min(pair) == 0 for pair in different)
