"""Collectives of a compiled program: their devices, and the mesh axes that they run over."""

import functools
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from exajax.program.hlo import Instruction

KIND_OF_OPCODE = {
    "all-reduce": "all-reduce",
    "all-gather": "all-gather",
    "reduce-scatter": "reduce-scatter",
    "all-to-all": "all-to-all",
    "ragged-all-to-all": "all-to-all",  # as if every row were sent: their number is not in the text
    "collective-permute": "collective-permute",
    "collective-broadcast": "collective-broadcast",
}
"""Kind of collective by HLO opcode."""

SOURCE_TARGET_PAIRS = r"(\{(?:\{\d+,\s*\d+\},?\s*)*\})"

REPLICA_GROUPS = re.compile(
    r"replica_groups=("
    r"\[[\d,]+\]<=\[[\d,]+\](?:T\([\d,]+\))?"
    r"|mesh\[[^\]]*\](?:,\s*device_ids=\([^{]*\))?\s*\{[^}]*\}"
    r"|\{(?:\{[\d,\s]*\}[,\s]*)*\})"
)
"""Replica groups in any of the compiler's notations, which `replica_groups` explains."""


@dataclass(frozen=True)
class Collective:
    """A collective operation of one device.

    Attributes:
        kind: a value of `KIND_OF_OPCODE`.
        bytes: size of the whole array: the gathered result of an all-gather, the operand of a
            reduce-scatter, the array of an all-reduce, what one device sends in an all-to-all or a
            permute.
        group: positions in the flattened mesh of the devices of one group, in order; for a permute,
            of all senders and receivers.
        axes: names of the mesh axes that it runs over, joined by `+`, outermost first.
        hops: pairs of sender and receiver of a permute.
        arrays: number of arrays that the compiler combined into it.
    """

    kind: str
    bytes: int
    group: tuple[int, ...]
    axes: str
    hops: tuple[tuple[int, int], ...] = ()
    arrays: int = 1


def kind_of(instruction: Instruction) -> str | None:
    """Kind of the collective that an instruction is or starts; None for any other instruction."""
    return KIND_OF_OPCODE.get(instruction.opcode.removesuffix("-start"))


def read_collective(
    instruction: Instruction, operand_bytes: int, mesh_axes: Mapping[str, int]
) -> Collective:
    """The collective of an instruction.

    Args:
        instruction: the collective, or the start of an asynchronous one.
        operand_bytes: size of its operands on one device.
        mesh_axes: size of each mesh axis, outermost first; positions in the flattened mesh are the
            compiler's partitions.
    """
    kind = kind_of(instruction)
    if kind is None:
        raise ValueError(f"{instruction.name} ({instruction.opcode}) is not a collective")
    if kind == "collective-permute":
        members, axes, hops = _permute(
            instruction.text("source_target_pairs", SOURCE_TARGET_PAIRS), tuple(mesh_axes.items())
        )
        return Collective(kind, operand_bytes, members, axes, hops)
    group = replica_groups(instruction.attributes, math.prod(mesh_axes.values()))[0]
    whole = operand_bytes * len(group) if kind == "all-gather" else operand_bytes
    arrays = len(instruction.operands)
    return Collective(kind, whole, group, group_axes(group, mesh_axes), arrays=arrays)


@functools.lru_cache
def _permute(
    pairs: str, mesh_axes: tuple[tuple[str, int], ...]
) -> tuple[tuple[int, ...], str, tuple[tuple[int, int], ...]]:
    """Members, axes and hops of a permute; cached, since there can be thousands of pairs."""
    numbers = re.findall(r"\{(\d+),\s*(\d+)\}", pairs)
    hops = tuple((int(sender), int(receiver)) for sender, receiver in numbers)
    # All hops run along the same axes, except a hop to itself, which runs along none.
    axes = next(
        (axes for hop in hops if (axes := group_axes(hop, dict(mesh_axes))) != "none"), "none"
    )
    return tuple(sorted({device for hop in hops for device in hop})), axes, hops


def group_axes(group: tuple[int, ...], mesh_axes: Mapping[str, int]) -> str:
    """Names of the mesh axes along which the members of a group differ, joined by `+`."""
    return _group_axes(group, tuple(mesh_axes.items()))


@functools.lru_cache
def _group_axes(group: tuple[int, ...], mesh_axes: tuple[tuple[str, int], ...]) -> str:
    coordinates = np.unravel_index(np.asarray(group), tuple(size for _, size in mesh_axes))
    varying = [
        axis
        for (axis, _), positions in zip(mesh_axes, coordinates, strict=True)
        if (positions != positions[0]).any()
    ]
    return "+".join(varying) or "none"


def replica_groups(attributes: str, devices: int) -> tuple[tuple[int, ...], ...]:
    """Replica groups in any of the compiler's notations.

    `{{0,1},{2,3}}` lists them; `[2,4]<=[4,2]T(1,0)` is an iota that is reshaped, transposed and
    split into rows; `mesh['a'=4,'b'=2] {'b'}` names the axes that vary within a group, with
    `device_ids=([2,4]T(1,0))` for an order other than the natural one; `{}` is one group of all.

    Args:
        attributes: attributes of the instruction.
        devices: number of devices of the mesh.

    Raises:
        ValueError: the notation is none of these.
    """
    match = REPLICA_GROUPS.search(attributes)
    if not match:
        raise ValueError(f"no replica groups in: {attributes[:120]}")
    return _parse_groups(match[1], devices)


@functools.lru_cache
def _parse_groups(notation: str, devices: int) -> tuple[tuple[int, ...], ...]:
    """Replica groups of a notation; cached, since many collectives share one."""
    if notation.startswith("mesh"):
        rows = _mesh_groups(notation)
    elif notation.startswith("["):
        shape, dims, *order = re.findall(r"[\[(]([\d,]+)[\])]", notation)
        rows = _iota(dims, order[0] if order else None).reshape(_ints(shape))
    else:
        listed = re.findall(r"\{([\d,\s]+)\}", notation)
        return tuple(_ints(row) for row in listed) or (tuple(range(devices)),)
    return tuple(tuple(row) for row in rows.tolist())


def _mesh_groups(notation: str) -> np.ndarray:
    axes, named = notation.partition("]")[0], notation.rpartition("{")[2]
    sizes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", axes)}
    varying = re.findall(r"'(\w+)'", named)
    if ":" in named or not set(varying) <= set(sizes):
        raise ValueError(f"unknown replica groups: {notation}")
    ids = re.search(r"device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\)", notation)
    if "device_ids" in notation and not ids:
        raise ValueError(f"unknown replica groups: {notation}")
    order = _iota(ids[1], ids[2]) if ids else np.arange(math.prod(sizes.values()))
    names = list(sizes)
    fixed = [axis for axis in names if axis not in varying]
    transposed = order.reshape(tuple(sizes.values())).transpose(
        [names.index(axis) for axis in fixed + varying]
    )
    return transposed.reshape(-1, math.prod(sizes[axis] for axis in varying))


def _iota(dims: str, order: str | None) -> np.ndarray:
    shape = _ints(dims)
    grid = np.arange(math.prod(shape)).reshape(shape)
    return (grid.transpose(_ints(order)) if order else grid).reshape(-1)


def _ints(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", text))
