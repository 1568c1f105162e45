"""What lies in a device's memory at the peak of a compiled step, and what it is there for.

XLA says where every value lies and when it is alive (`exajax.program.dumps`). Here the moment is
found at which most bytes are alive, and each of those bytes gets the role of the value that it
holds. Values that share bytes count once.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from exajax import units
from exajax.program.dumps import Value
from exajax.program.hlo import Module
from exajax.program.origins import Origin, Origins

LISTED = 10
"""Buffers that are listed by name."""


@dataclass(frozen=True)
class Buffer:
    """One array that is alive at the peak.

    Attributes:
        bytes: what it takes on one device.
        role: the key of `Memory` that it counts for.
        name: what it is, in words.
        op_name: the path of JAX names it comes from, empty if the compiler made it.
        shape: type and dimensions on one device, such as `bf16[80,4,512,8192]`.
    """

    bytes: int
    role: str
    name: str
    op_name: str
    shape: str


@dataclass(frozen=True)
class Memory:
    """Bytes on one device at the peak of a step.

    Attributes:
        parameters: master parameters.
        optimizer: optimizer state.
        batch: the batch and other small inputs.
        gradients: gradients of the parameters, and sums of them over micro-batches.
        activations: what the forward pass keeps for the backward pass.
        temporaries: everything else that the step makes and drops again: copies of parameters to
            compute with, gathered parameters, work space, and what the packing of buffers into
            one block leaves unused.
        largest: the largest buffers, the largest first.
        divided: whether XLA says where its values lie; else gradients and activations count as
            temporaries.
    """

    parameters: int
    optimizer: int
    batch: int
    gradients: int
    activations: int
    temporaries: int
    largest: tuple[Buffer, ...] = ()
    divided: bool = True

    @property
    def total(self) -> int:
        """The peak."""
        state = self.parameters + self.optimizer + self.batch
        return state + self.gradients + self.activations + self.temporaries

    def shortfall(self, capacity: int) -> list[str]:
        """Returns by how much a step does not fit and what takes the most; nothing if it fits."""
        over = self.total - capacity
        if over <= 0:
            return []
        parts = {
            "parameters and optimizer": self.parameters + self.optimizer,
            "activations": self.activations,
            "gradients": self.gradients,
            "temporaries": self.temporaries,
        }
        most = max(parts, key=lambda name: parts[name])
        too_much, part = units.show(over, "B"), units.show(parts[most], "B")
        return [f"{too_much} a device too much; most of it is {most}, {part}"]


class Sizes(NamedTuple):
    """What is known of a step's memory without looking into it, in bytes on one device.

    Attributes:
        parameters: master parameters.
        optimizer: optimizer state.
        arguments: all inputs of the program.
        temporaries: the block that the program works in.
        results: outputs that are not written over inputs.
    """

    parameters: int
    optimizer: int
    arguments: int
    temporaries: int
    results: int


def measure(sizes: Sizes, module: Module, values: Sequence[Value]) -> Memory:
    """Returns what lies in memory at the peak.

    The total is that of XLA: inputs, the block of temporaries as large as XLA packs it, and the
    outputs that are not written over inputs.

    Args:
        sizes: of the step.
        module: the scheduled module.
        values: of the block of temporaries; none where XLA does not say where they lie, and then
            everything that the step makes counts as temporaries.
    """
    origins = Origins(module)
    alive = at_peak(values)
    found = [_described(bytes_, value, origins.of(value.name)) for bytes_, value in alive]
    by_role = {role: sum(b.bytes for b in found if b.role == role) for role in ROLES}
    made = by_role["gradients"] + by_role["activations"]
    inputs = [
        _buffer(shape.bytes, role, path, path, f"{shape.dtype}[{','.join(map(str, shape.dims))}]")
        for role, path, shape in origins.inputs()
    ]
    return Memory(
        parameters=sizes.parameters,
        optimizer=sizes.optimizer,
        batch=max(0, sizes.arguments - sizes.parameters - sizes.optimizer),
        gradients=by_role["gradients"],
        activations=by_role["activations"],
        temporaries=sizes.temporaries + sizes.results - made,
        largest=_largest([*found, *inputs]),
        divided=bool(values) or not sizes.temporaries,
    )


ROLES = ("gradients", "activations", "temporaries")
WORDS = {
    "parameters": "parameters",
    "optimizer": "optimizer state",
    "batch": "batch",
    "gradients": "gradients",
    "activations": "activations saved for the backward pass",
    "temporaries": "working memory",
}


def _described(bytes_: int, value: Value, origin: Origin) -> Buffer:
    shape = re.sub(r"\{[^}]*\}", "", value.shape)
    return _buffer(bytes_, origin.role, origin.path, origin.op_name, shape)


def _buffer(bytes_: int, role: str, path: str, op_name: str, shape: str) -> Buffer:
    return Buffer(bytes_, role, f"{WORDS[role]}: {path} {shape}", op_name, shape)


def _largest(buffers: Iterable[Buffer]) -> tuple[Buffer, ...]:
    return tuple(sorted(buffers, key=lambda b: (-b.bytes, b.name, b.op_name))[:LISTED])


def at_peak(values: Sequence[Value]) -> list[tuple[int, Value]]:
    """Returns the values that are alive when most bytes are, each with the bytes it counts for.

    Bytes that several values share (an array that a loop updates in place is a new value each
    time) count for the largest of them, and of equals for the one that lives longest.
    """
    born = sorted({value.born for value in values})  # only a birth can make a peak
    living = {step: [v for v in values if v.born <= step <= v.dies] for step in born}
    peak = max(born, key=lambda step: (_covered(_spans(living[step])), -step), default=None)
    return [] if peak is None else _without_overlap(living[peak])


def _spans(values: Iterable[Value]) -> list[tuple[int, int]]:
    return [(value.offset, value.offset + value.bytes) for value in values]


def _without_overlap(values: list[Value]) -> list[tuple[int, Value]]:
    """Returns each value with those of its bytes that no value before it in the order has."""
    taken: list[Value] = []
    counted = []
    for value in sorted(values, key=lambda v: (-v.bytes, v.born - v.dies, v.offset, v.name)):
        before = _covered(_spans(taken))
        taken.append(value)
        own = _covered(_spans(taken)) - before
        if own:
            counted.append((own, value))
    return counted


def _covered(spans: list[tuple[int, int]]) -> int:
    """Returns how many bytes lie in at least one of the spans."""
    total = reached = 0
    for begin, end in sorted(spans):
        total += max(0, end - max(begin, reached))
        reached = max(reached, end)
    return total
