"""Weak scaling: the same work on every device, on fewer devices than the whole mesh."""

import dataclasses
from collections.abc import Sequence

from exajax.machine.cluster import Cluster
from exajax.recipe.recipe import Recipe
from exajax.simulate.step_report import StepReport

COMPUTE_COPY = 0.5
"""Size of the copy of the parameters that a step computes with (bf16), to that of the masters."""

MOST = 3
"""Smaller meshes on the curve, at most."""


def smaller(recipe: Recipe, report: StepReport, cluster: Cluster) -> list[Recipe]:
    """Returns up to `MOST` recipes on smaller meshes, from the smallest that should fit.

    The outermost axis of the batch is divided; each device keeps its work. State that is sharded
    over that axis grows as it shrinks, the rest of the memory stays, so the whole mesh's compiled
    program tells which is the smallest to compile.

    Args:
        recipe: the whole job.
        report: what is predicted for it.
        cluster: where it would run; a smaller mesh must fill nodes, or be a part of one.
    """
    if not report.fits:
        return []  # on fewer devices there is only more to hold
    axis = "data" if recipe.mesh.data > 1 else "fsdp"
    size = recipe.mesh.sizes[axis]
    memory = report.memory_bytes
    parameters = memory.parameters
    over_axis = {  # bytes that the axis divides, by the ZeRO level from which it does
        3: parameters * (1 + COMPUTE_COPY),
        2: parameters,  # gradients
        1: memory.optimizer,
    }
    zero = recipe.zero if axis == "data" and isinstance(recipe.zero, int) else 3
    divided = sum(bytes_ for level, bytes_ in over_axis.items() if zero >= level)
    candidates = [
        smaller_size
        for smaller_size in range(1, size)
        if size % smaller_size == 0
        and cluster.in_whole_nodes(recipe.mesh.devices // size * smaller_size)
        and memory.total + divided * (size / smaller_size - 1) <= memory.capacity
    ]
    return [_on(recipe, axis, chosen) for chosen in _spread(candidates, size)]


def _spread(candidates: list[int], size: int) -> list[int]:
    """Returns the smallest candidate, and those nearest to equal ratios between it and `size`."""
    if not candidates:
        return []
    first = candidates[0]
    wanted = [first * (size / first) ** (step / MOST) for step in range(MOST)]
    nearest = {
        min(candidates, key=lambda c, w=w: abs(c / w - 1) if c >= w else abs(w / c - 1))  # type: ignore[misc]
        for w in wanted
    }
    return sorted(nearest)


def _on(recipe: Recipe, axis: str, size: int) -> Recipe:
    per_shard = recipe.global_batch // recipe.mesh.batch_shards
    mesh = dataclasses.replace(recipe.mesh, **{axis: size})
    return dataclasses.replace(recipe, mesh=mesh, global_batch=per_shard * mesh.batch_shards)


def curve(points: Sequence[StepReport]) -> dict[str, dict[int, float]]:
    """Returns throughput and weak-scaling efficiency by number of devices.

    Efficiency is tokens/s of a device, as a share of that on the smallest mesh.
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
