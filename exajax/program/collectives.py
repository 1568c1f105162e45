"""Collectives of a compiled program: which devices take part, over which mesh axes."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from exajax.program.hlo import Instruction

PAIRS = r"(\{(?:\{\d+,\s*\d+\},?\s*)*\})"

KINDS = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
    "collective-broadcast",
)


@dataclass(frozen=True)
class Collective:
    """One collective operation, seen from one device.

    Attributes:
        kind: one of `KINDS`.
        bytes: size of the whole array that the group works on: the gathered result of an
            all-gather, the operand of a reduce-scatter, the array of an all-reduce, what one
            device sends in an all-to-all or a permute.
        group: positions in the mesh of the devices of one group, in order; of a permute, all
            senders and receivers.
        hops: of a permute, who sends to whom.
        arrays: how many arrays the compiler combined into it.
        axes: names of the mesh axes it runs over, joined by `+`, outermost first.
    """

    kind: str
    bytes: int
    group: tuple[int, ...]
    axes: str
    hops: tuple[tuple[int, int], ...] = ()
    arrays: int = 1


def kind_of(instruction: Instruction) -> str | None:
    """Returns the kind of collective that an instruction is or starts, else None."""
    kind = instruction.opcode.removesuffix("-start")
    return kind if kind in KINDS else None


def read(instruction: Instruction, operand_bytes: int, mesh_axes: Mapping[str, int]) -> Collective:
    """Reads a collective.

    Args:
        instruction: the collective, or the start of an asynchronous one.
        operand_bytes: size of what it reads on one device.
        mesh_axes: size of each mesh axis, outermost first; positions in the flattened mesh are
            what the compiler calls partitions.
    """
    kind = kind_of(instruction)
    if kind is None:
        raise ValueError(f"{instruction.name} ({instruction.opcode}) is not a collective")
    if kind == "collective-permute":
        found = re.findall(r"\{(\d+),\s*(\d+)\}", instruction.text("source_target_pairs", PAIRS))
        hops = tuple((int(sender), int(receiver)) for sender, receiver in found)
        # Every hop runs along the same axes; a hop to itself along none.
        axes = max((axes_of(hop, mesh_axes) for hop in hops), key=lambda axes: axes != "none")
        members = tuple(sorted({device for hop in hops for device in hop}))
        return Collective(kind, operand_bytes, members, axes, hops)
    group = replica_groups(instruction.attributes, math.prod(mesh_axes.values()))[0]
    whole = operand_bytes * len(group) if kind == "all-gather" else operand_bytes
    arrays = len(instruction.operands)
    return Collective(kind, whole, group, axes_of(group, mesh_axes), arrays=arrays)


def axes_of(group: tuple[int, ...], mesh_axes: Mapping[str, int]) -> str:
    """Returns the names of the mesh axes along which the members of a group differ."""
    coordinates = np.unravel_index(np.asarray(group), tuple(mesh_axes.values()))
    varying = [
        axis for axis, places in zip(mesh_axes, coordinates, strict=True) if len(set(places)) > 1
    ]
    return "+".join(varying) or "none"


def replica_groups(attributes: str, devices: int) -> list[tuple[int, ...]]:
    """Reads replica groups in any of the compiler's notations.

    `{{0,1},{2,3}}` lists them; `[2,4]<=[4,2]T(1,0)` is an iota, reshaped, transposed and cut into
    rows; `mesh['a'=4,'b'=2] {'b'}`, with `device_ids=([2,4]T(1,0))` where the order is not the
    natural one, names the axes that vary within a group; `{}` is one group of all.

    Raises:
        ValueError: the notation is none of these.
    """
    iota = re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", attributes)
    if iota:
        return [tuple(row) for row in _iota(iota[2], iota[3]).reshape(_ints(iota[1])).tolist()]
    mesh = re.search(
        r"replica_groups=mesh\[([^\]]*)\](?:,\s*device_ids=\((?:\[([\d,]+)\])(?:T\(([\d,]+)\))?\))?"
        r"\s*\{([^}]*)\}",
        attributes,
    )
    if mesh:
        sizes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", mesh[1])}
        varying = re.findall(r"'(\w+)'", mesh[4])
        if any(":" in part for part in mesh[4].split(",")) or not set(varying) <= set(sizes):
            raise ValueError(f"unknown replica groups: {mesh[0]}")
        order = _iota(mesh[2] or str(math.prod(sizes.values())), mesh[3])
        grid = order.reshape(tuple(sizes.values()))
        names = list(sizes)
        fixed = [axis for axis in names if axis not in varying]
        moved = grid.transpose([names.index(axis) for axis in fixed + varying])
        width = math.prod(sizes[axis] for axis in varying)
        return [tuple(row) for row in moved.reshape(-1, width).tolist()]
    listed = re.search(r"replica_groups=\{(\{[\d,{}\s]*\})?\}", attributes)
    if listed and listed[1]:
        return [_ints(row) for row in re.findall(r"\{([\d,\s]+)\}", listed[1])]
    if listed:
        return [tuple(range(devices))]
    raise ValueError(f"no replica groups in: {attributes[:120]}")


def _iota(dims: str, order: str | None) -> np.ndarray:
    shape = _ints(dims)
    grid = np.arange(math.prod(shape)).reshape(shape)
    return (grid.transpose(_ints(order)) if order else grid).reshape(-1)


def _ints(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", text))
