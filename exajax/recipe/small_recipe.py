"""The small recipe that is trained on this machine, in place of one for a large machine."""

from typing import Any

from exajax.models.presets import small_model_of
from exajax.recipe import option
from exajax.recipe.recipe import Recipe
from exajax.spmd.mesh import MeshSpec

IMAGES = 64
"""Images of a step, with as many tokens as a batch of the small model of text."""


def shrink(recipe: Recipe, mesh: MeshSpec) -> tuple[Recipe, list[str]]:
    """A recipe of the same family on a small mesh, and a list of the options that differ.

    All other options are the same.

    Args:
        recipe: the recipe of the full model.
        mesh: a mesh of this machine's CPU devices, without a pipeline.

    Returns:
        The recipe, and each differing option for people, with the reason.
    """
    rate = 3e-4 if recipe.optimizer == "lion" else 3e-3  # the best of those tried
    changes: dict[str, tuple[Any, str]] = {
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
        changes["global_batch"] = IMAGES, "a small mesh has a small batch"
        changes["learning_rate"] = rate / 3, "a small model learns faster"
    if recipe.attention != "flash":
        del changes["attention"]
    values = {
        name: changes[name][0] if name in changes else getattr(recipe, name)
        for name in option.option_names(Recipe)
    }
    del values["model"], values["mesh"]
    result = Recipe.of(small_model_of(recipe.model), mesh, **values)
    differences = [
        f"{name} {getattr(result, name)} instead of {getattr(recipe, name)} ({reason})"
        for name, (_, reason) in changes.items()
        if getattr(result, name) != getattr(recipe, name)
    ]
    return result, differences
