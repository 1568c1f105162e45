"""Weak scaling: recipes on smaller meshes with the same work for each device, and their curve."""

import dataclasses
from collections.abc import Sequence

from exajax.machine.cluster import Cluster
from exajax.recipe.recipe import Recipe
from exajax.simulate.step_report import StepReport

COMPUTE_COPY = 0.5
"""Bytes of the bf16 parameters that a step computes with / bytes of the master parameters."""

MOST = 3
"""Most smaller meshes on the curve."""


def smaller_meshes(recipe: Recipe, report: StepReport, cluster: Cluster) -> list[Recipe]:
    """Up to `MOST` recipes on smaller meshes, starting with the smallest that should fit.

    The size of the outermost batch axis is reduced, and each device has the same work. State that
    is sharded over that axis grows in proportion, and other memory stays the same: so the
    prediction for the full mesh tells which smaller meshes fit.

    Args:
        recipe: the recipe on the full mesh.
        report: its prediction.
        cluster: the machine; a smaller mesh must be a multiple of a node, or a part of one.
    """
    if not report.fits:
        return []  # fewer devices need more memory each
    axis = "data" if recipe.mesh.data > 1 else "fsdp"
    size = recipe.mesh.sizes[axis]
    memory = report.memory_bytes
    parameters = memory.parameters
    sharded_bytes = {  # by the ZeRO level from which the axis shards them
        3: parameters * (1 + COMPUTE_COPY),
        2: parameters,  # gradients
        1: memory.optimizer,
    }
    zero = recipe.zero if axis == "data" and isinstance(recipe.zero, int) else 3
    growing_bytes = sum(bytes_ for level, bytes_ in sharded_bytes.items() if zero >= level)
    candidates = [
        smaller_size
        for smaller_size in range(1, size)
        if size % smaller_size == 0
        and cluster.in_whole_nodes(recipe.mesh.devices // size * smaller_size)
        and memory.total + growing_bytes * (size / smaller_size - 1) <= memory.capacity
    ]
    return [_with_axis_size(recipe, axis, chosen) for chosen in _spread(candidates, size)]


def _spread(candidates: list[int], size: int) -> list[int]:
    """The smallest candidate, and those nearest to equal ratios between it and `size`."""
    if not candidates:
        return []
    first = candidates[0]
    ideals = [first * (size / first) ** (step / MOST) for step in range(MOST)]
    nearest = {
        min(candidates, key=lambda c, x=x: abs(c / x - 1) if c >= x else abs(x / c - 1))  # type: ignore[misc]
        for x in ideals
    }
    return sorted(nearest)


def _with_axis_size(recipe: Recipe, axis: str, size: int) -> Recipe:
    per_shard = recipe.global_batch // recipe.mesh.batch_shards
    mesh = dataclasses.replace(recipe.mesh, **{axis: size})
    return dataclasses.replace(recipe, mesh=mesh, global_batch=per_shard * mesh.batch_shards)


def curve(points: Sequence[StepReport]) -> dict[str, dict[int, float]]:
    """Throughput and weak-scaling efficiency by number of devices.

    Efficiency is the tokens/s of a device / the tokens/s of a device on the smallest mesh.
    """
    throughput = {p.devices: p.tokens_per_s for p in points if p.fits and p.tokens_per_s}
    if not throughput:
        return {"tokens_per_s": {}, "efficiency": {}}
    smallest = min(throughput)
    reference = throughput[smallest] / smallest
    return {
        "tokens_per_s": dict(sorted(throughput.items())),
        "efficiency": {n: rate / n / reference for n, rate in sorted(throughput.items())},
    }
