"""Train steps compiled for devices that are not there, each once for all the tests that read it."""

import dataclasses
import functools
from dataclasses import dataclass
from typing import Any

from exajax.machine.cluster import load_cluster
from exajax.models.presets import lookup
from exajax.program import described_devices, operations
from exajax.program.compile import compile_step
from exajax.recipe import workloads
from exajax.recipe.recipe import Recipe
from exajax.spmd.mesh import MeshSpec
from exajax.spmd.step import TrainStep


@dataclass(frozen=True)
class Step:
    """A recipe, and the program of its step."""

    recipe: Recipe
    program: operations.Program

    @property
    def moved(self) -> dict[str, dict[str, int]]:
        """Communicated bytes by mesh axes and kind."""
        return operations.communicated_bytes(self.program)

    @property
    def flops(self) -> float:
        """FLOPs of one device."""
        return operations.total_flops(self.program)

    @property
    def operations(self) -> list[tuple[operations.Operation, int]]:
        """Every operation, and how often it runs."""
        return list(operations.flatten(self.program))

    @property
    def unknown_loops(self) -> list[str]:
        """Loops that the compiler did not count."""
        return operations.unknown_loops(self.program)

    @property
    def block_parameters(self) -> int:
        """Parameters of the stacked blocks."""
        return self.recipe.model.parameters - self.end_parameters

    @property
    def end_parameters(self) -> int:
        """Parameters outside the blocks: embedding, positions, last norm, logits."""
        return dataclasses.replace(self.recipe.model, layers=0).parameters


def compiled(model: str, mesh: str, cluster: str = "dgx-h100", **options: Any) -> Step:
    """Returns the step of a recipe on as many described devices as the mesh has."""
    return _compiled(Recipe.of(lookup(model), MeshSpec.parse(mesh), **options), cluster)


@functools.cache
def _compiled(recipe: Recipe, cluster: str) -> Step:
    machine = load_cluster(cluster)
    described = recipe.mesh.build(described_devices.described_devices(machine, recipe.mesh.devices))
    workload = workloads.workload(recipe, machine.chip.platform)
    step = TrainStep.of(workload, described, **recipe.step_options)
    return Step(recipe, compile_step(step).program)
