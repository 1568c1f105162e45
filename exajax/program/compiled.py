"""A compiled step, read: what one device does, and what lies in its memory."""

import math
from dataclasses import dataclass

from exajax.program import hlo, operations
from exajax.program.memory import Memory


@dataclass(frozen=True)
class Artifact:
    """What is kept of a compiled step; everything else is read from it.

    Attributes:
        text: the scheduled module.
        mesh_axes: size of every mesh axis, outermost first.
        memory: bytes on one device.
        bubble: share of the turns of a pipeline in which a stage has nothing to do.
        xla_estimate_s: the step time by XLA's own scheduler, None where it does not say.
        idle_axes: mesh axes larger than 1 that divide nothing of the step.
        left_out: compiler options that this compiler does not know.
    """

    text: str
    mesh_axes: dict[str, int]
    memory: Memory
    bubble: float
    xla_estimate_s: float | None
    idle_axes: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()


@dataclass(frozen=True)
class Compiled:
    """A step as the compiler made it for a mesh.

    Attributes:
        program: what one device does in a step, in the order of the schedule.
        mesh_axes: size of every mesh axis, outermost first.
        memory: bytes on one device.
        bubble: share of the turns of a pipeline in which a stage has nothing to do.
        xla_estimate_s: the step time by XLA's own scheduler, None where it does not say.
        idle_axes: mesh axes larger than 1 that divide nothing of the step.
        left_out: compiler options that this compiler does not know.
    """

    program: operations.Program
    mesh_axes: dict[str, int]
    memory: Memory
    bubble: float = 0.0
    xla_estimate_s: float | None = None
    idle_axes: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()

    @classmethod
    def of(cls, artifact: Artifact) -> "Compiled":
        """Reads the module."""
        return cls(
            operations.read(hlo.parse(artifact.text), artifact.mesh_axes),
            artifact.mesh_axes,
            artifact.memory,
            artifact.bubble,
            artifact.xla_estimate_s,
            artifact.idle_axes,
            artifact.left_out,
        )

    @property
    def devices(self) -> int:
        """Devices of the mesh."""
        return math.prod(self.mesh_axes.values())
