"""The small recipe that is trained for real where a recipe's own devices are not."""

from typing import Any

from exajax.models.presets import small_model_of
from exajax.recipe import option
from exajax.recipe.recipe import Recipe
from exajax.spmd.mesh import MeshSpec

IMAGES = 64
"""Images of a step: as many tokens as the batch of a small model of text."""


def small(recipe: Recipe, mesh: MeshSpec) -> tuple[Recipe, list[str]]:
    """Returns a recipe of the same family on a small mesh, and the options that it cannot keep.

    It keeps every other option. Those that it cannot are returned in words, with the reason.

    Args:
        recipe: of the full model.
        mesh: without a pipeline, on this machine's CPU.
    """
    rate = 3e-4 if recipe.optimizer == "lion" else 3e-3  # the best of those tried
    others: dict[str, tuple[Any, str]] = {
        "global_batch": (None, "a small mesh has a small batch"),
        "micro_batch": (None, "it follows from the batch"),
        "seq": (None, "it is the small model's"),
        "precision": ("fp32", "XLA's CPU backend has no fast bf16"),
        "attention": ("auto", "flash is a kernel of GPUs"),
        "learning_rate": (rate, "a small model learns faster"),
        "schedule": ("1f1b", "the small mesh has no pipeline"),
        "interleave": (1, "the small mesh has no pipeline"),
    }
    if recipe.model.family == "vit":
        others["global_batch"] = IMAGES, "a small mesh has a small batch"
        others["learning_rate"] = rate / 3, "a small model learns faster"
    if recipe.attention != "flash":
        del others["attention"]
    values = {
        name: others[name][0] if name in others else getattr(recipe, name)
        for name in option.names(Recipe)
    }
    del values["model"], values["mesh"]
    made = Recipe.of(small_model_of(recipe.model), mesh, **values)
    not_kept = [
        f"{name} {getattr(made, name)} instead of {getattr(recipe, name)} ({why})"
        for name, (_, why) in others.items()
        if getattr(made, name) != getattr(recipe, name)
    ]
    return made, not_kept
