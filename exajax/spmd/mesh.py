"""Device meshes: their notation, and their layout over devices."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from exajax.errors import InputError, nearest

if TYPE_CHECKING:  # parsing a mesh must not import jax
    import jax

AXES = ("pipe", "data", "fsdp", "expert", "context", "model")
"""Every mesh axis, outermost first. Neighbours on the last axis are closest on the machine, so that
the axes that communicate most (every matmul, every attention) stay within a node if they fit."""

BATCH_AXES = ("data", "fsdp", "expert")
"""The axes that divide the batch over their devices."""


MOST_DEVICES = 1 << 24
"""Limit on the devices of a job: more than all machines of the Top500 have together."""

MOST_CHARACTERS = 200
"""Limit on the length of a mesh's notation."""


@dataclass(frozen=True)
class MeshSpec:
    """Sizes of the mesh axes; an axis of size 1 is the same as no axis.

    Attributes:
        data: data parallelism: divides the batch; `zero` says what else this axis shards.
        fsdp: fully sharded data parallelism: divides the batch, parameters, gradients and optimizer
            state.
        model: tensor parallelism: divides heads, feed-forward width and vocabulary.
        context: context parallelism: divides the sequence, with ring attention.
        expert: expert parallelism: divides the experts, and the batch.
        pipe: pipeline parallelism: divides the layers into stages.
    """

    data: int = 1
    fsdp: int = 1
    model: int = 1
    context: int = 1
    expert: int = 1
    pipe: int = 1

    @classmethod
    def parse(cls, text: str, field: str = "mesh") -> "MeshSpec":
        """The mesh that is written `128x8` (data x model) or `data=16,fsdp=8,model=8`.

        Args:
            text: the mesh.
            field: field that errors name.

        Raises:
            InputError: the text is neither, an axis is unknown or repeated, or a size is not a
                positive integer.
        """
        if len(text) > MOST_CHARACTERS:
            raise InputError(
                field, f"{len(text):,} characters are no mesh", "write 128x8 or data=128,model=8"
            )
        sizes: dict[str, str] = {}
        if "=" in text:
            for part in text.split(","):
                name, _, size = (piece.strip() for piece in part.partition("="))
                if name not in AXES:
                    raise InputError(field, f"unknown axis {name!r}", nearest(name, AXES))
                if name in sizes:
                    raise InputError(field, f"axis {name!r} is given twice", "give it once")
                sizes[name] = size
        else:
            parts = text.split("x")
            if len(parts) != 2:
                raise InputError(
                    field, f"{text!r} is not a mesh", "write 128x8 or data=128,model=8"
                )
            sizes = {"data": parts[0].strip(), "model": parts[1].strip()}
        for name, size in sizes.items():
            if not re.fullmatch(r"0*[1-9][0-9]{0,8}", size):
                raise InputError(
                    field,
                    f"the size of {name!r} in {text!r} is {size!r}",
                    f"give a whole number from 1 to {MOST_DEVICES:,}, as in 128x8 or "
                    "data=128,model=8",
                )
        mesh = cls(**{name: int(size) for name, size in sizes.items()})
        if mesh.devices > MOST_DEVICES:
            raise InputError(
                field, f"{text} has {mesh.devices:,} devices", f"give at most {MOST_DEVICES:,}"
            )
        return mesh

    @property
    def sizes(self) -> dict[str, int]:
        """Size of every axis, outermost first."""
        return {axis: getattr(self, axis) for axis in AXES}

    @property
    def devices(self) -> int:
        """Number of devices in the mesh."""
        return math.prod(self.sizes.values())

    @property
    def batch_shards(self) -> int:
        """Number of shards that the global batch is divided into."""
        return math.prod(self.sizes[axis] for axis in BATCH_AXES)

    def __str__(self) -> str:
        if self.devices == self.data * self.model:
            return f"{self.data}x{self.model}"
        return ",".join(f"{axis}={size}" for axis, size in self.sizes.items() if size > 1)

    def build(self, devices: Sequence["jax.Device"]) -> "jax.sharding.Mesh":
        """The `jax.sharding.Mesh` of these sizes over attached or described devices.

        Devices are ordered by slice, then by host, so that inner axes stay within a host and outer
        axes cross hosts. (A slice is a set of hosts with fast links: a TPU slice, or an NVLink
        domain.) Axis types are always Auto: the partitioner chooses what the step leaves open.

        Raises:
            InputError: the number of devices is not that of the mesh.
        """
        import jax
        import numpy as np

        if len(devices) != self.devices:
            raise InputError(
                "mesh",
                f"{self} needs {self.devices} devices and {len(devices)} are there",
                f"give a mesh of {len(devices)}, or as many devices as the mesh has",
            )
        ordered = sorted(devices, key=_position)
        grid = np.asarray(ordered, dtype=object).reshape(tuple(self.sizes.values()))
        auto = jax.sharding.AxisType.Auto
        return jax.sharding.Mesh(grid, AXES, axis_types=(auto,) * len(AXES))


def _position(device: "jax.Device") -> tuple[int, int, int]:
    """Slice, host and number of a device, by which neighbours are adjacent in sorted order."""
    return getattr(device, "slice_index", 0) or 0, device.process_index, device.id


def idle_note(axes: Sequence[str], sizes: Mapping[str, int]) -> str:
    """A warning that some axes of a mesh divide nothing, with a remedy.

    Args:
        axes: the idle axes.
        sizes: size of every axis of the mesh.
    """
    named = ", ".join(f"{axis}={sizes[axis]}" for axis in axes)
    return (
        f"idle mesh axes: {named}; neither the batch nor any parameter or activation is divided "
        "over them, so that their devices repeat the same work; name the axes of parameters "
        "(out_sharding), or leave these out of the mesh"
    )
