"""The workload and the evaluation metrics of a recipe, for models of text and of images."""

import dataclasses
from collections.abc import Callable
from typing import Any

from exajax.recipe import image_workload, text_workload
from exajax.recipe.recipe import Recipe
from exajax.spmd.weighted import Loss
from exajax.spmd.workload import Batch, Stages, Workload

FAMILIES = text_workload.FAMILIES | image_workload.FAMILIES


def workload(recipe: Recipe, platform: str) -> Workload:
    """The workload of a recipe.

    Args:
        recipe: the job.
        platform: `cpu`, `cuda` or `gpu`, on which the implementation of attention depends.
    """
    kind = image_workload if recipe.model.family in image_workload.FAMILIES else text_workload
    return kind.workload(recipe, platform)


def evaluation_metrics(recipe: Recipe, platform: str) -> dict[str, Callable[[Any, Batch], Loss]]:
    """Metrics of held-out batches, by name, besides the training loss.

    Args:
        recipe: the job.
        platform: `cpu`, `cuda` or `gpu`.

    Returns:
        `accuracy`, for images; `loss` without regularisers, if the training loss has any.
    """
    metrics: dict[str, Callable[[Any, Batch], Loss]] = {}
    plain = dataclasses.replace(recipe, z_loss=0.0, label_smoothing=0.0)
    if plain != recipe or recipe.model.experts:
        loss = workload(plain, platform).loss
        metrics["loss"] = loss.without_extra if isinstance(loss, Stages) else loss
    if recipe.model.family in image_workload.FAMILIES:
        metrics["accuracy"] = image_workload.accuracy_metric(recipe)
    return metrics
