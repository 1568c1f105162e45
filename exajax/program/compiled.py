"""A compiled step: the operations of one device, and its memory at the peak."""

import math
from dataclasses import dataclass

from exajax.program import hlo, operations
from exajax.program.memory import Memory


@dataclass(frozen=True)
class Artifact:
    """A compiled step as it is stored on disk; `Compiled` is read from it.

    Attributes:
        text: the scheduled HLO module.
        mesh_axes: size of every mesh axis, outermost first.
        memory: memory of one device at the peak.
        bubble: share of a pipeline's slots in which a stage has no item.
        xla_estimate_s: XLA's own estimate of the step time; None if it has none.
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
    """A step compiled for a mesh, in the form that is priced.

    Attributes:
        program: operations of one device, in the order of the schedule.
        mesh_axes: size of every mesh axis, outermost first.
        memory: memory of one device at the peak.
        bubble: share of a pipeline's slots in which a stage has no item.
        xla_estimate_s: XLA's own estimate of the step time; None if it has none.
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
        """The compiled step of a stored artifact."""
        return cls(
            operations.read_program(hlo.parse(artifact.text), artifact.mesh_axes),
            artifact.mesh_axes,
            artifact.memory,
            artifact.bubble,
            artifact.xla_estimate_s,
            artifact.idle_axes,
            artifact.left_out,
        )

    @property
    def devices(self) -> int:
        """Number of devices of the mesh."""
        return math.prod(self.mesh_axes.values())
