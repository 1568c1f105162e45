"""Parser of scheduled HLO modules, the text of `compiled.as_text()`.

Only what pricing needs is parsed: shapes, operands, attributes, called computations and the order
of the schedule.
"""

import functools
import json
import math
import re
from dataclasses import dataclass
from typing import Any

BITS = {"pred": 8, "token": 0, "opaque": 0} | {
    f"{kind}{bits}": bits for kind in "suf" for bits in (2, 4, 8, 16, 32, 64)
}
"""Bits of an element by HLO type; other types have their size in their name (`bf16`)."""


HOST = "S(5)"
"""Memory space of the host, in the layout of an array."""


@dataclass(frozen=True)
class Shape:
    """Element type and dimensions of an array, and whether it is in the host's memory."""

    dtype: str
    dims: tuple[int, ...]
    host: bool = False

    @property
    def elements(self) -> int:
        """Number of elements."""
        return math.prod(self.dims)

    @property
    def bytes(self) -> int:
        """Size in memory, without padding."""
        bits = BITS.get(self.dtype)
        if bits is None:  # bf16, c64, f8e4m3fn, ...
            match = re.match(r"[a-z]+(\d+)", self.dtype)
            bits = int(match[1]) if match else 8
        return math.ceil(self.elements * bits / 8)


@dataclass(frozen=True)
class Instruction:
    """One instruction of a computation.

    Attributes:
        name: unique in its computation.
        opcode: HLO opcode, such as `fusion` or `all-gather-start`.
        shapes: its result; of a tuple, the elements in order, with nested tuples flattened.
        operands: names of the instructions that it reads.
        attributes: text after the operands.
        is_root: whether its value is the computation's value.
        literal: text in place of the operands: the value of a constant, the number of a parameter.
    """

    name: str
    opcode: str
    shapes: tuple[Shape, ...]
    operands: tuple[str, ...]
    attributes: str
    is_root: bool
    literal: str = ""

    @property
    def bytes(self) -> int:
        """Size of its result."""
        return sum(shape.bytes for shape in self.shapes)

    @property
    def op_name(self) -> str:
        """The path of JAX names that it comes from; empty if the compiler inserted it."""
        return self.text("metadata", r'\{[^}]*?op_name="([^"]*)"')

    def text(self, key: str, pattern: str = r"([^,\s]+)") -> str:
        """The text of an attribute that the group of a pattern matches; empty if there is none."""
        match = re.search(rf"(?:^|[\s,]){re.escape(key)}={pattern}", self.attributes)
        return match[1] if match else ""

    def numbers(self, key: str) -> tuple[int, ...]:
        """The numbers of an attribute of the form `key={1,2}`."""
        listed = self.text(key, r"\{([\d,\s]*)\}")
        return tuple(int(number) for number in re.findall(r"\d+", listed))

    def called(self, key: str) -> str:
        """The name of the computation in `key=%name`; empty if there is none."""
        return self.text(key, r"%?([\w.\-$]+)")

    @property
    def branches(self) -> tuple[str, ...]:
        """Names of the computations of a conditional's branches."""
        listed = self.text("branch_computations", r"\{([^}]*)\}")
        of_if = [self.called("true_computation"), self.called("false_computation")]
        return tuple(re.findall(r"%?([\w.\-$]+)", listed)) or tuple(filter(None, of_if))

    @functools.cached_property
    def backend_config(self) -> dict[str, Any]:
        """The backend's configuration; empty if there is none in JSON."""
        start = self.attributes.find("backend_config=")
        if start < 0:
            return {}
        try:
            value, _ = json.JSONDecoder().raw_decode(
                self.attributes, start + len("backend_config=")
            )
        except json.JSONDecodeError:
            return {}
        return value if isinstance(value, dict) else {}


@dataclass(frozen=True)
class Computation:
    """Instructions in the order in which they are scheduled."""

    name: str
    instructions: tuple[Instruction, ...]

    @functools.cached_property
    def by_name(self) -> dict[str, Instruction]:
        """Instructions by name."""
        return {instruction.name: instruction for instruction in self.instructions}

    @functools.cached_property
    def root(self) -> Instruction:
        """The instruction whose value is the computation's."""
        return next((i for i in self.instructions if i.is_root), self.instructions[-1])

    @functools.cached_property
    def users(self) -> dict[str, list[Instruction]]:
        """Instructions that read each instruction, by its name."""
        users: dict[str, list[Instruction]] = {i.name: [] for i in self.instructions}
        for instruction in self.instructions:
            for operand in dict.fromkeys(instruction.operands):
                if operand in users:
                    users[operand].append(instruction)
        return users


@dataclass(frozen=True)
class Module:
    """A compiled module: its computations by name, and the name of the entry computation."""

    computations: dict[str, Computation]
    entry: str


def parse(text: str) -> Module:
    """The module of a text.

    Raises:
        ValueError: the text is not an HLO module: it has no entry computation.
    """
    computations: dict[str, Computation] = {}
    entry = name = ""
    body: list[Instruction] = []
    for line in text.splitlines():
        if line.startswith(("%", "ENTRY")) and line.rstrip().endswith("{"):
            name = line.removeprefix("ENTRY").split("(")[0].strip().lstrip("%").strip()
            body = []
            if line.startswith("ENTRY"):
                entry = name
        elif line.startswith("}") and name:
            computations[name] = Computation(name, tuple(body))
            name = ""
        elif name and " = " in line:
            body.append(_instruction(line))
    if not entry:
        raise ValueError("not the text of an HLO module: it has no ENTRY computation")
    return Module(computations, entry)


def _instruction(line: str) -> Instruction:
    line = re.sub(r"/\*.*?\*/", "", line).strip()
    left, right = line.split(" = ", 1)
    end_of_type = _closing(right, 0) + 1 if right.startswith("(") else right.index(" ")
    rest = right[end_of_type:].lstrip()
    opening = rest.index("(")
    closing = _closing(rest, opening)
    arguments = rest[opening + 1 : closing]
    return Instruction(
        name=left.removeprefix("ROOT ").strip().lstrip("%"),
        opcode=rest[:opening],
        shapes=shapes(right[:end_of_type]),
        operands=tuple(re.findall(r"%([\w.\-$]+)", arguments)),
        attributes=rest[closing + 1 :].lstrip(", "),
        is_root=left.startswith("ROOT "),
        literal=arguments if rest[:opening] in ("constant", "parameter") else "",
    )


def shapes(text: str) -> tuple[Shape, ...]:
    """Arrays of a type, `f32[8,16]{1,0}` or a tuple."""
    return tuple(
        Shape(dtype, tuple(int(dim.lstrip("<=")) for dim in dims.split(",") if dim), HOST in layout)
        for dtype, dims, layout in re.findall(r"\b([a-z]\w*)\[([\d,<=]*)\](\{[^}]*\})?", text)
    )


def _closing(text: str, opening: int) -> int:
    """Index of the parenthesis that closes the one at index `opening`."""
    depth = 0
    for index in range(opening, len(text)):
        if text[index] == "(":
            depth += 1
        elif text[index] == ")":
            depth -= 1
            if depth == 0:
                return index
    raise ValueError(f"unbalanced parentheses in HLO: {text[:80]}")
