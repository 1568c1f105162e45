"""A recipe's language model as a workload: module, next-token loss, batch and optimizer."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from exajax.errors import InputError
from exajax.models.attention import zigzag
from exajax.models.dimensions import ModelConfig
from exajax.models.gpt import GPT
from exajax.models.layers import ComputeOptions, Decoder, StreamAndLoss
from exajax.models.llama import Llama
from exajax.models.losses import cross_entropy
from exajax.models.mixtral import Mixtral
from exajax.models.whole_tokens import needs_whole_tokens
from exajax.recipe.optimizer import optimizer, schedule
from exajax.recipe.recipe import Recipe
from exajax.spmd.weighted import Loss
from exajax.spmd.workload import Batch, Stages, Workload

FAMILIES: dict[str, type[GPT | Llama | Mixtral]] = {"gpt": GPT, "llama": Llama, "mixtral": Mixtral}


def forward(config: ModelConfig, interleave: int = 1) -> Callable[[nnx.Rngs], nnx.Module]:
    """Returns what makes a model that is used and not trained; it maps tokens to logits.

    Args:
        config: dimensions.
        interleave: parts that its layers lie in, those of a stage of the pipeline it comes from.

    Raises:
        InputError: it is no language model.
    """
    if config.family not in FAMILIES:
        raise InputError(
            "run_dir", f"{config.name} is a {config.family}", "give the run of a language model"
        )
    how = ComputeOptions(interleave=interleave)
    return lambda rngs: FAMILIES[config.family](config, how, rngs=rngs)


def workload(recipe: Recipe, platform: str) -> Workload:
    """Returns what one step of a recipe computes.

    Args:
        recipe: the job.
        platform: `cpu`, `cuda` or `gpu`; decides what implements attention.
    """
    how = ComputeOptions(
        flash=recipe.flash(platform),
        fp8=recipe.precision == "fp8",
        remat=recipe.remat,
        interleave=recipe.interleave,
        moe=recipe.moe,
        capacity_factor=recipe.capacity_factor,
        whole_tokens=needs_whole_tokens(
            recipe.mesh.sizes, recipe.layout["zero"], recipe.sequence_parallel
        ),
    )
    tokens_BT = jax.ShapeDtypeStruct((recipe.global_batch, recipe.seq), jnp.int32)
    batch = {"inputs": tokens_BT, "targets": tokens_BT}

    def build(rngs: nnx.Rngs) -> nnx.Module:
        return FAMILIES[recipe.model.family](recipe.model, how, rngs=rngs)

    return Workload(
        build=build,
        loss=Stages(
            enter=_enter,
            body=_body,
            exit=functools.partial(_exit, recipe=recipe),
            parts=recipe.interleave,
        ),
        batch=batch | ({"segments": tokens_BT} if recipe.packed else {}),
        optimizer=optimizer(recipe, build),
        learning_rate=schedule(recipe),
        tokens_per_sample=recipe.seq,
        model_flops=recipe.flops,
    )


def _enter(model: Decoder, batch: Batch) -> jax.Array:
    return model.enter(batch["inputs"], batch.get("segments"))


def _body(model: Decoder, x_BTD: jax.Array, batch: Batch) -> StreamAndLoss:
    return model.body(x_BTD, batch.get("segments"))


def _exit(model: Decoder, x_BTD: jax.Array, batch: Batch, *, recipe: Recipe) -> Loss:
    return cross_entropy(
        model.head(x_BTD),
        zigzag(batch["targets"]),
        recipe.model.vocab,
        weights=zigzag(counted(batch)) if "segments" in batch else None,
        z_loss=recipe.z_loss,
    )


def counted(batch: Batch) -> jax.Array:
    """Returns which targets of packed documents count in the loss, booleans [B, T].

    The first token of a document does not follow from the one before it, so it is no target. Behind
    the last token of a sequence `segments` does not reach: there the data has a negative target.
    """
    segments_BT = batch["segments"]
    same_BT = jnp.pad(
        segments_BT[:, 1:] == segments_BT[:, :-1], ((0, 0), (0, 1)), constant_values=True
    )
    return same_BT & (batch["targets"] >= 0)
