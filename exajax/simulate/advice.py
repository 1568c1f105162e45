"""What to change where a step does not fit: each change estimated, the first that does compiled.

An estimate scales the parts of the memory that was found by what a change divides or drops.
"""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

from exajax import units
from exajax.errors import InputError
from exajax.machine.cluster import Cluster
from exajax.program.memory import Memory
from exajax.recipe.recipe import REMATS, Recipe
from exajax.simulate.prediction import Prediction

TRIES = 3
"""Changes that are compiled at most, a few seconds each."""

Change = tuple[str, Recipe]
"""Flags, and the recipe with them."""


def ways_out(
    recipe: Recipe,
    cluster: Cluster,
    memory: Memory,
    capacity: int,
    predict: Callable[[Recipe], Prediction],
) -> list[str]:
    """The first single change with which a step fits, or the smallest mesh that may, in words.

    Args:
        recipe: what does not fit.
        cluster: where.
        memory: what it takes.
        capacity: bytes of a device.
        predict: compiles and prices a recipe.
    """
    room = f"of {_gb(capacity)}"
    tried = 0
    for flags, changed in single_changes(recipe, cluster):
        estimate = estimated_total(recipe, memory, changed)
        if estimate > capacity or tried == TRIES:
            continue
        tried += 1
        try:
            found = predict(changed)
        except InputError:
            continue
        if found.fits:
            takes = f"{_gb(found.compiled.memory.total)} {room}"
            step = units.show(found.step_time_s, "s")
            return [f"{flags} makes it fit: {takes}, {step} a step (compiled and simulated)"]
    for flags, changed in smallest_meshes(recipe, cluster):
        estimate = estimated_total(recipe, memory, changed)
        if estimate <= capacity:
            return [f"no single change makes it fit; {flags} may: about {_gb(estimate)} {room}"]
    return [f"no mesh of the {cluster.devices:,} devices of {cluster.name} is likely to hold it"]


def single_changes(recipe: Recipe, cluster: Cluster) -> Iterator[Change]:
    """Yields recipes that differ in one thing, in the order in which they cost the least time."""
    mesh = recipe.mesh
    if isinstance(recipe.zero, int) and mesh.data > 1:
        for level in range(recipe.zero + 1, 4):
            yield from _change(recipe, cluster, f"`zero` {level}", zero=level)
    remats = [r for r in ("selective", "full") if REMATS.index(r) > REMATS.index(recipe.remat)]
    for remat in remats:
        yield from _change(recipe, cluster, f"`remat` {remat}", remat=remat)
    if mesh.pipe == 1:
        sizes = [n for n in range(recipe.micro_batch - 1, 0, -1) if recipe.micro_batch % n == 0]
        for size in sizes:
            yield from _change(recipe, cluster, f"`micro_batch` {size}", micro_batch=size)
    outer = "data" if mesh.data > 1 else "fsdp"
    ways = 2
    while getattr(mesh, outer) % ways == 0 and mesh.model * ways <= cluster.devices_per_node:
        divided = {outer: getattr(mesh, outer) // ways, "model": mesh.model * ways}
        yield from _on(recipe, cluster, **divided)
        ways *= 2
    yield from _larger(recipe, cluster)
    if recipe.remat != "offload":
        yield from _change(recipe, cluster, "`remat` offload", remat="offload")


def smallest_meshes(recipe: Recipe, cluster: Cluster) -> Iterator[Change]:
    """Yields larger and larger meshes with everything sharded and nothing saved."""
    thrifty = {"zero": 3, "remat": "full", "micro_batch": 1}
    flags = "`zero` 3 `remat` full `micro_batch` 1"
    yield from _change(recipe, cluster, flags, **thrifty)
    for mesh, changed in _larger(recipe, cluster):
        yield from _change(changed, cluster, f"{mesh} {flags}", **thrifty)


def _larger(recipe: Recipe, cluster: Cluster) -> Iterator[Change]:
    outer = "fsdp" if recipe.mesh.fsdp > 1 else "data"
    size = 2 * getattr(recipe.mesh, outer)
    while recipe.mesh.devices // getattr(recipe.mesh, outer) * size <= cluster.devices:
        yield from _on(recipe, cluster, **{outer: size})
        size *= 2


def _on(recipe: Recipe, cluster: Cluster, **axes: int) -> Iterator[Change]:
    """Yields the recipe on another mesh: with its batch, or, if that is too small, a larger one."""
    mesh = dataclasses.replace(recipe.mesh, **axes)
    batch = -(-recipe.global_batch // mesh.batch_shards) * mesh.batch_shards
    micro = batch // mesh.batch_shards // min(recipe.micro_batches, batch // mesh.batch_shards)
    flags = f"`mesh` {mesh} `global_batch` {batch}"
    yield from _change(recipe, cluster, flags, mesh=mesh, global_batch=batch, micro_batch=micro)


def _change(recipe: Recipe, cluster: Cluster, flags: str, **changes: Any) -> Iterator[Change]:
    """Yields the changed recipe, or nothing where its parts do not go together."""
    try:
        changed = recipe.replaced(**changes)
        cluster.check(changed.mesh.devices, changed.precision)
    except InputError:
        return
    yield flags, changed


def estimated_total(recipe: Recipe, memory: Memory, changed: Recipe) -> int:
    """Bytes that a changed recipe takes on a device, estimated from what the recipe takes.

    Parameters, gradients and optimizer state go by the devices that share them
    (arXiv:1910.02054, section 5), activations by tokens of a micro-batch on a device and by what
    the layers save. Accumulating adds fp32 sums of the gradients as large as the parameters.
    """

    def share(level: int) -> float:
        return _shards(recipe, level) / _shards(changed, level)

    tokens = _tokens(changed) / _tokens(recipe)
    narrow = 0 if recipe.precision in ("fp32", "pure-bf16") else memory.parameters // 2
    work = max(0, memory.temporaries - narrow)
    gradients = memory.gradients * share(2)
    if recipe.micro_batches == 1 and changed.micro_batches > 1:
        gradients += memory.parameters * share(3)
    saved = memory.activations * tokens
    if changed.remat != recipe.remat:
        saved = min(saved, _saved_bytes(changed))
    state = (memory.parameters + narrow) * share(3) + memory.optimizer * share(1)
    return int(state + gradients + saved + work * tokens + memory.batch)


def _shards(recipe: Recipe, level: int) -> int:
    """Returns the devices that share what the data axis divides from a ZeRO level on."""
    mesh = recipe.mesh
    divided = isinstance(recipe.zero, int) and recipe.zero >= level
    always = mesh.fsdp * mesh.expert * mesh.pipe * mesh.model
    return always * (mesh.data if divided else 1)


def _tokens(recipe: Recipe) -> float:
    """Returns the tokens that a device works on at a time, by the parts it divides them into."""
    return recipe.micro_batch * recipe.seq / recipe.mesh.context / recipe.mesh.model


def _saved_bytes(recipe: Recipe) -> float:
    """Bytes that the layers on a device save for the backward pass, in 16 bits.

    A layer saves its input; `selective` also the results of its products with weights.
    """
    model, mesh = recipe.model, recipe.mesh
    saved = float(model.width if recipe.sequence_parallel else model.width * mesh.model)
    if recipe.remat == "selective":
        heads = (model.heads + 2 * model.kv_heads) * model.head_dim
        saved += model.width + heads + (0 if model.experts else model.up_matrices * model.ffn)
    stashes = 1 if mesh.pipe == 1 else recipe.micro_batches
    if mesh.pipe > 1 and recipe.schedule != "gpipe":
        stashes = min(stashes, 2 * mesh.pipe - 1)
    return 2 * saved * _tokens(recipe) * model.layers / mesh.pipe * stashes


def _gb(bytes_: float) -> str:
    return units.show(bytes_, "B")
