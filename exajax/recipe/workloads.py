"""The workload of a recipe, whatever its model reads."""

import dataclasses
from collections.abc import Callable
from typing import Any

from exajax.recipe import language, vision
from exajax.recipe.recipe import Recipe
from exajax.spmd.weighted import Loss
from exajax.spmd.workload import Batch, Stages, Workload

FAMILIES = language.FAMILIES | vision.FAMILIES


def workload(recipe: Recipe, platform: str) -> Workload:
    """Returns what one step of a recipe computes.

    Args:
        recipe: the job.
        platform: `cpu`, `cuda` or `gpu`; decides what implements attention.
    """
    kind = vision if recipe.model.family in vision.FAMILIES else language
    return kind.workload(recipe, platform)


def measures(recipe: Recipe, platform: str) -> dict[str, Callable[[Any, Batch], Loss]]:
    """Returns what held-out batches are measured by, by name, where the loss does not say it.

    Args:
        recipe: the job.
        platform: as for `workload`.

    Returns:
        `accuracy`, of images; `loss` without what only regularises training, where it does.
    """
    found: dict[str, Callable[[Any, Batch], Loss]] = {}
    plain = dataclasses.replace(recipe, z_loss=0.0, label_smoothing=0.0)
    if plain != recipe or recipe.model.experts:
        loss = workload(plain, platform).loss
        found["loss"] = loss.without_extra if isinstance(loss, Stages) else loss
    if recipe.model.family in vision.FAMILIES:
        found["accuracy"] = vision.accurate(recipe)
    return found
