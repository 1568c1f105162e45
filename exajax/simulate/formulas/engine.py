"""Time and memory of a training step in closed formulas, for arrays of layouts.

Each program has formulas of its own (`xla`, `torch`); what they have in common is in `shared`. The
software profile of the machine says whose program it is.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from exajax.machine.programs import program_digest
from exajax.simulate.formulas.shared.layouts import Layouts
from exajax.simulate.formulas.shared.results import Footprint, Times
from exajax.simulate.formulas.shared.work import Work
from exajax.simulate.formulas.torch import figures as torch_figures
from exajax.simulate.formulas.torch import memory as torch_memory
from exajax.simulate.formulas.torch import step as torch_step
from exajax.simulate.formulas.xla import figures as xla_figures
from exajax.simulate.formulas.xla import memory as xla_memory
from exajax.simulate.formulas.xla import step as xla_step


class MemoryOf(Protocol):
    """Bytes of a device at the peak of a step in every layout."""

    def __call__(self, work: Work, layouts: Layouts, *, unlimited: bool = False) -> Footprint:
        """`unlimited`: of a device with room for all that a scheduler could also do without."""


@dataclass(frozen=True)
class Program:
    """The formulas of one program.

    Attributes:
        figures: name of its file in `meshes/programs`.
        step: time and memory of a step in every layout, each as if it stood alone.
        memory: the memory alone.
    """

    figures: str
    step: Callable[[Work, Layouts], tuple[Times, Footprint]]
    memory: MemoryOf


PROGRAMS = {
    "jax": Program(xla_figures.NAME, xla_step.step, xla_memory.memory),
    "megatron": Program(torch_figures.NAME, torch_step.step, torch_memory.memory),
}
"""By `SoftwareProfile.program`."""


def step(work: Work, layouts: Layouts) -> tuple[Times, Footprint]:
    """Time and memory of a step in every layout, by the formulas of its program."""
    return PROGRAMS[work.software.program].step(work, layouts)


def memory(work: Work, layouts: Layouts, *, unlimited: bool = False) -> Footprint:
    """Memory of a step in every layout, by the formulas of its program.

    Args:
        work: the step.
        layouts: the layouts.
        unlimited: whether the device has room for all that a scheduler could also do without.
    """
    return PROGRAMS[work.software.program].memory(work, layouts, unlimited=unlimited)


def figures_of(program: str) -> dict[str, str]:
    """Name and hash of the figures of a program, for the provenance of what they predict."""
    name = PROGRAMS[program].figures
    return {"name": name, "sha256": program_digest(name)}
