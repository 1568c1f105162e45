"""What a value of a compiled program is for, by where it comes from.

JAX names every operation by its path through the program, and autodiff leaves its mark there
(`exajax.program.op_names`). What a loop stacks up or carries is named by the tuples around it only,
and is followed to what makes it.
"""

import re
from collections.abc import Iterator
from typing import NamedTuple

from exajax.program import op_names
from exajax.program.hlo import Computation, Instruction, Module, Shape

THROUGH = ("bitcast", "copy", "copy-start", "copy-done", "fusion-done", "opt-barrier", "reshape")
"""Opcodes whose value is that of their first operand."""

STATE = {"params": "parameters", "optimizer": "optimizer"}


class Origin(NamedTuple):
    """Where a value comes from.

    Attributes:
        role: `gradients`, `activations` or `temporaries`.
        path: scopes and operation, such as `layers/mlp/dot_general`.
        op_name: the path in full, empty if the compiler made it.
    """

    role: str
    path: str
    op_name: str


class Source(NamedTuple):
    """What makes a value.

    Attributes:
        opcode: of the instruction.
        op_name: its path of JAX names; of a stack, that of what is stacked.
        shapes: what the instruction makes.
        stacked: it is written part by part into an array with an axis for the trips of a loop.
        carried: it goes from each trip of a loop to the next.
    """

    opcode: str
    op_name: str
    shapes: tuple[Shape, ...]
    stacked: bool
    carried: bool


class Origins:
    """Looks values of a module up by name."""

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
        """Yields role, path and shape of every input of the program."""
        for instruction in self.module.computations[self.module.entry].instructions:
            if instruction.opcode == "parameter" and instruction.shapes:
                name = re.sub(r"\\(.)", r"\1", instruction.op_name).removeprefix("state.")
                kind, *keys = re.findall(r"\w+", name) or [""]
                path = "/".join(key for key in keys if key not in ("kernel", "value"))
                yield STATE.get(kind, "batch"), path, instruction.shapes[0]

    def of(self, value: str) -> Origin:
        """Returns where a value comes from; its name is that of XLA, such as `while.5{3}`."""
        name, _, index = value.rstrip("}").partition("{")
        if name not in self._home:
            return Origin("temporaries", name, "")
        places = tuple(int(place) for place in index.split(",") if place)
        source = self._follow(name, self._home[name], places, frozenset(), False)
        path = op_names.readable(source.op_name) or source.opcode
        return Origin(self._role(source), path, source.op_name)

    def _role(self, source: Source) -> str:
        """Says what a value is for.

        What the forward pass stacks up in a loop, or makes outside of the loop over layers, is
        there for the backward pass. What the backward pass stacks up are the gradients of the
        layers. What else it leaves behind, and what a loop over micro-batches adds up, is a
        gradient where it has the shape of a parameter.
        """
        path = source.op_name
        backward, forward = op_names.is_backward(path), op_names.is_differentiated(path)
        looped = op_names.is_looped(path)
        if "optimizer/" in path or source.opcode.startswith("all-gather"):
            return "temporaries"
        if source.stacked and forward:
            return "gradients" if backward else "activations"
        if forward and not backward:
            return "temporaries" if looped or source.carried else "activations"
        left_behind = source.carried or looped != backward
        if left_behind and any(
            _alike(shape.dims, parameter)
            for shape in source.shapes
            for parameter in self._parameters
        ):
            return "gradients"
        return "temporaries"

    def _follow(
        self,
        name: str,
        home: Computation,
        places: tuple[int, ...],
        seen: frozenset[str],
        carried: bool,
    ) -> Source:
        """Follows a value through tuples, loops and copies to the instruction that makes it.

        Args:
            name: the instruction that has the value, or a tuple around it.
            home: the computation of the instruction.
            places: where in the tuple.
            seen: bodies of loops that were entered on the way.
            carried: whether a loop carries it.
        """
        instruction = home.by_name[name]
        opcode, operands = instruction.opcode, instruction.operands
        if opcode == "get-tuple-element":
            places = (int(instruction.text("index")), *places)
            return self._follow(operands[0], home, places, seen, carried)
        if opcode == "tuple" and places:
            return self._follow(operands[places[0]], home, places[1:], seen, carried)
        if opcode in THROUGH and operands:
            return self._follow(operands[0], home, places, seen, carried)
        body = instruction.called("body") if opcode == "while" else home.name
        loops = opcode == "while" or (opcode == "parameter" and body in self._loops)
        if loops and places and body not in seen:
            inner = self.module.computations[body]
            made = self._follow(inner.root.name, inner, places, seen | {body}, True)
            if made.opcode != "parameter":
                return made
            loop = self._loops[body]  # handed on as it came in
            return self._follow(
                loop.operands[0], self._home[loop.name], places, seen | {body}, carried
            )
        return self._made(instruction, home, places, carried)

    def _made(
        self, instruction: Instruction, home: Computation, places: tuple[int, ...], carried: bool
    ) -> Source:
        root, inner = instruction, home
        if instruction.opcode in ("fusion", "fusion-start"):
            inner = self.module.computations[instruction.called("calls")]
            root = inner.root
            if root.opcode == "tuple" and places:
                root = inner.by_name[root.operands[places[0]]]
            root = _behind(root, inner)
        stacked = root.opcode == "dynamic-update-slice"
        named = _pass_of(root.operands[1], inner) if stacked else ""
        op_name = named or root.op_name or instruction.op_name
        return Source(instruction.opcode, op_name, instruction.shapes, stacked, carried)


def _pass_of(name: str, home: Computation) -> str:
    """Returns the nearest path, from an instruction backwards, that belongs to a pass of autodiff.

    Empty if there is none in its computation.
    """
    near, seen = [name], {name}
    for name in near:
        instruction = home.by_name[name]
        if op_names.is_differentiated(instruction.op_name):
            return instruction.op_name
        near += [operand for operand in instruction.operands if operand not in seen]
        seen |= {*instruction.operands}
    return ""


def _behind(instruction: Instruction, home: Computation) -> Instruction:
    """Returns what a nameless copy or bitcast is a copy of."""
    while instruction.opcode in THROUGH and instruction.operands and not instruction.op_name:
        instruction = home.by_name[instruction.operands[0]]
    return instruction


def _alike(dims: tuple[int, ...], parameter: tuple[int, ...]) -> bool:
    """Returns whether an array may be the gradient of a parameter, by their parts on a device.

    A mesh axis may divide one axis of the one and not of the other; axes of size 1 do not count.
    """
    left, right = (sorted(dim for dim in shape if dim > 1) for shape in (dims, parameter))
    if len(left) != len(right):
        return False
    unlike = [(a, b) for a, b in zip(left, right, strict=True) if a != b]
    one_at_most = len(unlike) <= min(1, len(left) - 1)
    return one_at_most and all(max(pair) % min(pair) == 0 for pair in unlike)
