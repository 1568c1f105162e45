"""Weak scaling: the same work on every device, on fewer devices than the whole mesh."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from exajax.recipe import Recipe

MOST = 3
"""Smaller meshes on the curve, at most."""


def smaller(recipe: Recipe, prediction: Mapping[str, Any]) -> list[Recipe]:
    """Returns up to `MOST` recipes on smaller meshes, from the smallest that should fit.

    The outermost axis of the batch is divided; each device keeps its work. State that is sharded
    over that axis grows as it shrinks, the rest of the memory stays, so the whole mesh's compiled
    program tells which is the smallest to compile.

    Args:
        recipe: the whole job.
        prediction: what was predicted for it (`Prediction.to_json`).
    """
    if not prediction["fits"]:
        return []  # on fewer devices there is only more to hold
    axis = "data" if recipe.mesh.data > 1 else "fsdp"
    size = recipe.mesh.sizes[axis]
    memory = prediction["memory_bytes"]
    divided = {"parameters": axis == "fsdp" or recipe.zero == 3}
    divided["optimizer"] = axis == "fsdp" or recipe.zero >= 1
    candidates = []
    for smaller_size in (d for d in range(1, size) if size % d == 0):
        growth = size / smaller_size
        needed = memory["total"] + sum(
            memory[kind] * (growth - 1) for kind, is_divided in divided.items() if is_divided
        )
        if needed <= memory["capacity"]:
            candidates.append(smaller_size)
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


def curve(points: list[dict[str, Any]]) -> dict[str, dict[int, float]]:
    """Returns throughput and weak-scaling efficiency by number of devices.

    Efficiency is tokens/s of a device, as a share of that on the smallest mesh.
    """
    throughput = {p["devices"]: p["tokens_per_s"] for p in points if p["fits"]}
    if not throughput:
        return {"tokens_per_s": {}, "efficiency": {}}
    smallest = min(throughput)
    reference = throughput[smallest] / smallest
    return {
        "tokens_per_s": dict(sorted(throughput.items())),
        "efficiency": {n: rate / n / reference for n, rate in sorted(throughput.items())},
    }
