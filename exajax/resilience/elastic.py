"""Layouts of a job on fewer hosts: fewer replicas, the same global batch in more micro-batches.

A step keeps its samples and their order. Sums over the batch are taken in another order, so that
losses differ by rounding.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from exajax.errors import InputError
from exajax.recipe.recipe import Recipe


@dataclass(frozen=True)
class ElasticLayout:
    """The hosts and the mesh of one attempt.

    Attributes:
        members: hosts, in the order of their processes' ranks.
        mesh: the mesh of their devices, as text.
        micro_batch: sequences of a micro-batch.
    """

    members: tuple[int, ...]
    mesh: str
    micro_batch: int


@dataclass(frozen=True)
class ElasticLayouts:
    """The layouts of a job on any number of its hosts.

    Attributes:
        recipe: the recipe on all hosts.
        hosts: number of all hosts.
        min_hosts: least number of hosts to train on.
    """

    recipe: Recipe
    hosts: int
    min_hosts: int

    def for_hosts(self, ready: Sequence[int]) -> ElasticLayout | None:
        """The layout on the largest number of ready hosts that makes up a mesh; None without one.

        Args:
            ready: numbers of hosts, in order.
        """
        for count in range(len(ready), self.min_hosts - 1, -1):
            recipe = shrink(self.recipe, self.hosts, count)
            if recipe:
                return ElasticLayout(tuple(ready[:count]), str(recipe.mesh), recipe.micro_batch)
        return None


def shrink(recipe: Recipe, hosts: int, count: int) -> Recipe | None:
    """A recipe on fewer hosts; None if its replicas cannot be divided over that many.

    The `data` axis shrinks, or `fsdp` where there is no `data`; axes that split a layer stay. No
    micro-batch grows.

    Args:
        recipe: the recipe on all hosts.
        hosts: number of all hosts.
        count: number of hosts that are left.
    """
    if count == hosts:
        return recipe
    for axis in ("data", "fsdp"):
        size = getattr(recipe.mesh, axis)
        if size * count % hosts or size == 1:
            continue
        mesh = dataclasses.replace(recipe.mesh, **{axis: size * count // hosts})
        if recipe.global_batch % mesh.batch_shards:
            continue
        share = recipe.global_batch // mesh.batch_shards
        micro_batch = next(n for n in range(recipe.micro_batch, 0, -1) if share % n == 0)
        try:
            return recipe.replaced(mesh=mesh, micro_batch=micro_batch)
        except InputError:
            continue
    return None
