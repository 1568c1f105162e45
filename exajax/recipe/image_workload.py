"""The workload of a recipe with a model of images: module, loss, batch and optimizer."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from exajax.models.layers import ComputeOptions
from exajax.models.losses import accuracy, cross_entropy
from exajax.models.vit import ViT
from exajax.recipe.optimizer import optimizer, schedule
from exajax.recipe.recipe import Recipe
from exajax.spmd.weighted import Loss
from exajax.spmd.workload import Batch, Stages, Workload

FAMILIES = {"vit": ViT}


def workload(recipe: Recipe, platform: str) -> Workload:
    """The workload of a recipe.

    Args:
        recipe: the job.
        platform: `cpu`, `cuda` or `gpu`, on which the implementation of attention depends.
    """
    model = recipe.model
    how = ComputeOptions(
        flash=recipe.flash(platform),
        fp8=recipe.precision == "fp8",
        remat=recipe.remat,
        interleave=recipe.interleave,
    )
    images = (recipe.global_batch, model.image, model.image, model.channels)

    def build(rngs: nnx.Rngs) -> nnx.Module:
        return FAMILIES[model.family](model, how, rngs=rngs)

    def exit(module: ViT, x_BTD: jax.Array, batch: Batch) -> Loss:
        return cross_entropy(
            module.head(x_BTD),
            batch["labels"],
            model.vocab,
            z_loss=recipe.z_loss,
            smoothing=recipe.label_smoothing,
        )

    return Workload(
        build=build,
        loss=_stages(exit, recipe.interleave),
        batch={
            "images": jax.ShapeDtypeStruct(images, jnp.float32),
            "labels": jax.ShapeDtypeStruct(images[:1], jnp.int32),
        },
        optimizer=optimizer(recipe, build),
        learning_rate=schedule(recipe),
        tokens_per_sample=recipe.seq,
        model_flops=recipe.flops,
    )


def accuracy_metric(recipe: Recipe) -> Stages:
    """The share of a batch's images whose class has the highest logit, in the form of a loss."""

    def exit(module: ViT, x_BTD: jax.Array, batch: Batch) -> jax.Array:
        return accuracy(module.head(x_BTD), batch["labels"], recipe.model.vocab)

    return _stages(exit, recipe.interleave)


def _stages(exit: Callable[[ViT, jax.Array, Batch], Loss], parts: int) -> Stages:
    return Stages(
        enter=lambda module, batch: module.enter(batch["images"]),
        body=lambda module, x_BTD, batch: module.body(x_BTD),
        exit=exit,
        parts=parts,
    )
