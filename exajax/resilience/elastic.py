"""How a job goes on with fewer hosts: fewer replicas, the same global batch in more parts.

Every sample of a step stays in that step, and their order stays; sums are made in another order, so
that numbers change by rounding.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from exajax.errors import InputError
from exajax.recipe.recipe import Recipe


@dataclass(frozen=True)
class Layout:
    """What an attempt runs on.

    Attributes:
        members: hosts, by the number of their process.
        mesh: that their devices make up, as it is written.
        micro_batch: sequences that a part of the batch works on at a time.
    """

    members: tuple[int, ...]
    mesh: str
    micro_batch: int


@dataclass(frozen=True)
class Layouts:
    """The layouts of a recipe on fewer hosts than it was made for.

    Attributes:
        recipe: for all hosts.
        hosts: how many that is.
        min_hosts: how many at least.
    """

    recipe: Recipe
    hosts: int
    min_hosts: int

    def of(self, ready: Sequence[int]) -> Layout | None:
        """Returns the layout on as many of the hosts that are ready as make up a mesh.

        Args:
            ready: numbers of hosts, in order.
        """
        for count in range(len(ready), self.min_hosts - 1, -1):
            recipe = shrunk(self.recipe, self.hosts, count)
            if recipe:
                return Layout(tuple(ready[:count]), str(recipe.mesh), recipe.micro_batch)
        return None


def shrunk(recipe: Recipe, hosts: int, count: int) -> Recipe | None:
    """Returns a recipe's job on fewer hosts, None if its replicas do not go with so many.

    Replicas are given up where there are any (`data`), else the ways that `fsdp` divides by; what
    splits a layer stays as it is. No device works on more samples at a time than before.

    Args:
        recipe: for all hosts.
        hosts: how many that is.
        count: hosts that are left.
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
