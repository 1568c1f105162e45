"""Checks that the options of a recipe fit each other, its model and its mesh."""

import math
from typing import Protocol

from exajax.errors import InputError
from exajax.models.dimensions import ModelConfig
from exajax.spmd.mesh import MeshSpec


class RecipeFields(Protocol):
    """The fields of `Recipe` that are checked here, without importing it: it imports this file."""

    @property
    def model(self) -> ModelConfig: ...  # noqa: D102
    @property
    def mesh(self) -> MeshSpec: ...  # noqa: D102
    @property
    def global_batch(self) -> int: ...  # noqa: D102
    @property
    def micro_batch(self) -> int: ...  # noqa: D102
    @property
    def micro_batches(self) -> int: ...  # noqa: D102
    @property
    def seq(self) -> int: ...  # noqa: D102
    @property
    def precision(self) -> str: ...  # noqa: D102
    @property
    def schedule(self) -> str: ...  # noqa: D102
    @property
    def interleave(self) -> int: ...  # noqa: D102
    @property
    def packed(self) -> bool: ...  # noqa: D102
    @property
    def label_smoothing(self) -> float: ...  # noqa: D102


def check(recipe: RecipeFields, *, analytic_only: bool) -> None:
    """Checks a recipe whose options are each within their own range.

    Args:
        recipe: the recipe.
        analytic_only: whether to accept what only the analytic engine supports (`Recipe.of`).

    Raises:
        InputError: options do not fit each other; names one to change.
    """
    _check_model(recipe, analytic_only)
    _check_batch(recipe)
    _check_axes(recipe)
    _check_sequence(recipe)
    _check_stages(recipe, analytic_only)
    _check_interleaving(recipe, analytic_only)


def _check_model(recipe: RecipeFields, analytic_only: bool) -> None:
    """Checks options that depend on the kind of model."""
    if recipe.label_smoothing and recipe.model.family != "vit":
        raise InputError(
            "label_smoothing",
            f"{recipe.model.name} is a model of text, and it is for images",
            "leave it out, or give `model` vit-b",
        )
    if recipe.precision == "fp8" and recipe.model.experts and not analytic_only:
        raise InputError(
            "precision",
            f"the experts of {recipe.model.name}, most of its work, are not computed in fp8",
            "give `precision` bf16",
        )
    if recipe.packed and recipe.model.family == "vit":
        raise InputError("packed", f"{recipe.model.name} reads no documents", "leave it out")
    if recipe.model.family == "vit" and recipe.seq != recipe.model.seq:
        raise InputError(
            "seq",
            f"it is {recipe.seq}, and images of {recipe.model.name} have {recipe.model.seq} "
            "patches",
            "leave it out",
        )
    if recipe.seq > recipe.model.seq:
        raise InputError(
            "seq",
            f"{recipe.seq} is longer than the {recipe.model.seq} of {recipe.model.name}",
            f"give at most {recipe.model.seq}",
        )


def _check_batch(recipe: RecipeFields) -> None:
    """Checks that the mesh divides the batch, and micro-batches divide a shard of it."""
    parts = recipe.mesh.batch_shards
    if recipe.global_batch % parts:
        raise InputError(
            "global_batch",
            f"{recipe.global_batch} sequences do not divide into the {parts} parts of mesh "
            f"{recipe.mesh}",
            f"give a multiple of {parts}",
        )
    if recipe.global_batch // parts % recipe.micro_batch:
        raise InputError(
            "micro_batch",
            f"{recipe.micro_batch} does not divide the {recipe.global_batch // parts} sequences of "
            f"each part of the batch",
            f"give a divisor of {recipe.global_batch // parts}",
        )


def _check_axes(recipe: RecipeFields) -> None:
    """Checks that the `model` and `expert` axes divide the dimensions of the model."""
    outputs = "classes" if recipe.model.family == "vit" else "vocabulary"
    for axis, what, size in (
        ("model", "heads", recipe.model.heads),
        ("model", "KV heads", recipe.model.kv_heads),
        ("model", "feed-forward width", recipe.model.ffn),
        ("model", outputs, recipe.model.padded_vocab),
        ("expert", "experts", recipe.model.experts),
    ):
        ways = getattr(recipe.mesh, axis)
        if size % ways or (ways > 1 and size == 0):
            fix = f"give a {axis} axis that divides {size}" if size else f"leave {axis} out"
            raise InputError("mesh", f"{axis}={ways} does not divide the {size} {what}", fix)


def _check_sequence(recipe: RecipeFields) -> None:
    """Checks that the `context` and `model` axes divide the sequence.

    A vit is exempt, since its number of patches is fixed: where they do not divide, its residual
    stream is replicated.
    """
    # Every device of the ring has two chunks of the sequence.
    context = 2 * recipe.mesh.context if recipe.mesh.context > 1 else 1
    ways = math.lcm(context, recipe.mesh.context * recipe.mesh.model)
    if recipe.seq % ways and recipe.model.family != "vit":
        raise InputError(
            "seq",
            f"{recipe.seq} tokens do not divide over context={recipe.mesh.context}, "
            f"model={recipe.mesh.model}",
            f"give a multiple of {ways}",
        )


def _scanned_blocks(recipe: RecipeFields) -> tuple[int, str]:
    """Number of blocks that the stack scans over, and what they are: layers, or groups of them."""
    every = recipe.model.moe_every
    return recipe.model.layers // every, "layers" if every == 1 else f"groups of {every} layers"


def _check_stages(recipe: RecipeFields, analytic_only: bool) -> None:
    """Checks that the pipeline stages divide the layers."""
    stages = recipe.mesh.pipe
    scanned, scanned_name = _scanned_blocks(recipe)
    if scanned % stages and not (analytic_only and stages <= scanned):
        raise InputError(
            "mesh",
            f"pipe={stages} does not divide the {scanned} {scanned_name}",
            f"give a pipe axis that divides {scanned}",
        )


def _check_interleaving(recipe: RecipeFields, analytic_only: bool) -> None:
    """Checks that an interleaved schedule fits the stages, layers and micro-batches."""
    stages = recipe.mesh.pipe
    scanned, scanned_name = _scanned_blocks(recipe)
    if (recipe.schedule == "interleaved") != (recipe.interleave > 1):
        raise InputError(
            "interleave",
            f"{recipe.interleave} parts of a stage do not go with schedule {recipe.schedule}",
            "give `schedule` interleaved with `interleave` 2 or more, or neither",
        )
    if recipe.interleave > 1 and stages == 1:
        raise InputError("interleave", "mesh has no pipe axis", "give a mesh with pipe")
    parts = stages * recipe.interleave
    if recipe.interleave > 1 and scanned % parts and not (analytic_only and parts <= scanned):
        raise InputError(
            "interleave",
            f"{stages} stages x {recipe.interleave} parts do not divide the {scanned} "
            f"{scanned_name} of {recipe.model.name}",
            f"make the product a divisor of {scanned}",
        )
    if recipe.interleave > 1 and recipe.micro_batches % stages:
        raise InputError(
            "micro_batch",
            f"{recipe.micro_batches} micro-batches do not divide over {stages} stages, as the "
            f"interleaved schedule needs",
            f"make global batch / (parts x micro-batch) a multiple of {stages}",
        )
