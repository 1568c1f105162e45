"""Peak memory of a compiled step on one device, divided by role.

XLA dumps the address and the live range of every value (`exajax.program.dumps`). From these, the
moment is determined at which most bytes are live, and each byte gets the role of the value in it.
Values that share bytes count once.
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
"""Number of largest buffers to list."""


@dataclass(frozen=True)
class Buffer:
    """An array that is live at the peak.

    Attributes:
        bytes: its size on one device.
        role: attribute of `Memory` that includes it.
        name: description for people.
        op_name: path of JAX names it comes from; empty if the compiler inserted it.
        shape: type and dimensions on one device, such as `bf16[80,4,512,8192]`.
    """

    bytes: int
    role: str
    name: str
    op_name: str
    shape: str


@dataclass(frozen=True)
class Memory:
    """Bytes of one device's memory that are in use at the peak of a step.

    Attributes:
        parameters: master parameters.
        optimizer: optimizer state.
        batch: the batch and other small inputs.
        gradients: gradients of the parameters, and their sums over micro-batches.
        activations: activations saved for the backward pass.
        temporaries: everything else: copies of parameters in the compute type, gathered parameters,
            work space, and fragmentation of the block of temporaries.
        largest: the largest buffers, in descending order.
        divided: whether XLA's dumps were readable; if not, gradients and activations count as
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
        """All bytes in use at the peak."""
        state = self.parameters + self.optimizer + self.batch
        return state + self.gradients + self.activations + self.temporaries

    def shortfall(self, capacity: int) -> list[str]:
        """How much memory is missing and what uses the most, for people; empty if the step fits."""
        missing = self.total - capacity
        if missing <= 0:
            return []
        parts = {
            "parameters and optimizer": self.parameters + self.optimizer,
            "activations": self.activations,
            "gradients": self.gradients,
            "temporaries": self.temporaries,
        }
        most = max(parts, key=lambda name: parts[name])
        excess, part = units.show(missing, "B"), units.show(parts[most], "B")
        return [f"{excess} a device too much; most of it is {most}, {part}"]


class Sizes(NamedTuple):
    """XLA's totals of a step's memory, in bytes on one device.

    Attributes:
        parameters: master parameters.
        optimizer: optimizer state.
        arguments: all inputs of the program.
        temporaries: the block of temporaries.
        results: outputs that do not reuse the memory of inputs.
    """

    parameters: int
    optimizer: int
    arguments: int
    temporaries: int
    results: int


def peak_memory(sizes: Sizes, module: Module, values: Sequence[Value]) -> Memory:
    """Memory of a step at its peak.

    The total is XLA's: inputs, the block of temporaries, and outputs that do not reuse the memory
    of inputs.

    Args:
        sizes: XLA's totals.
        module: the scheduled module.
        values: values in the block of temporaries; if there are none, gradients and activations
            count as temporaries.
    """
    origins = Origins(module)
    live = at_peak(values)
    buffers = [_buffer_of_value(bytes_, value, origins.of(value.name)) for bytes_, value in live]
    by_role = {role: sum(b.bytes for b in buffers if b.role == role) for role in ROLES}
    saved = by_role["gradients"] + by_role["activations"]
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
        temporaries=sizes.temporaries + sizes.results - saved,
        largest=_largest([*buffers, *inputs]),
        divided=bool(values) or not sizes.temporaries,
    )


ROLES = ("gradients", "activations", "temporaries")
ROLE_NAMES = {
    "parameters": "parameters",
    "optimizer": "optimizer state",
    "batch": "batch",
    "gradients": "gradients",
    "activations": "activations saved for the backward pass",
    "temporaries": "working memory",
}


def _buffer_of_value(bytes_: int, value: Value, origin: Origin) -> Buffer:
    shape = re.sub(r"\{[^}]*\}", "", value.shape)
    return _buffer(bytes_, origin.role, origin.path, origin.op_name, shape)


def _buffer(bytes_: int, role: str, path: str, op_name: str, shape: str) -> Buffer:
    return Buffer(bytes_, role, f"{ROLE_NAMES[role]}: {path} {shape}", op_name, shape)


def _largest(buffers: Iterable[Buffer]) -> tuple[Buffer, ...]:
    return tuple(sorted(buffers, key=lambda b: (-b.bytes, b.name, b.op_name))[:LISTED])


def at_peak(values: Sequence[Value]) -> list[tuple[int, Value]]:
    """Values that are live when most bytes are, each with the bytes that it counts for.

    Bytes that several values share (an array that a loop updates in place is a new value each time)
    count for the largest of them, and of equal ones for the longest-lived.
    """
    born = sorted({value.first for value in values})  # only a birth can make a peak
    living = {step: [v for v in values if v.first <= step <= v.last] for step in born}
    peak = max(born, key=lambda step: (_union_bytes(_spans(living[step])), -step), default=None)
    return [] if peak is None else _distinct_bytes(living[peak])


def _spans(values: Iterable[Value]) -> list[tuple[int, int]]:
    return [(value.offset, value.offset + value.bytes) for value in values]


def _distinct_bytes(values: list[Value]) -> list[tuple[int, Value]]:
    """Each value with the number of its bytes that no value before it in the order has."""
    added: list[Value] = []
    counts = []
    for value in sorted(values, key=lambda v: (-v.bytes, v.first - v.last, v.offset, v.name)):
        before = _union_bytes(_spans(added))
        added.append(value)
        new_bytes = _union_bytes(_spans(added)) - before
        if new_bytes:
            counts.append((new_bytes, value))
    return counts


def _union_bytes(spans: list[tuple[int, int]]) -> int:
    """Number of bytes in at least one of the spans."""
    total = reached = 0
    for begin, end in sorted(spans):
        total += max(0, end - max(begin, reached))
        reached = max(reached, end)
    return total
