"""The workload of a recipe with a language model: module, loss, batch and optimizer."""

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


def inference_model(config: ModelConfig, interleave: int = 1) -> Callable[[nnx.Rngs], nnx.Module]:
    """A function that builds a language model for inference, from tokens to logits.

    Args:
        config: dimensions of the model.
        interleave: chunks of layers in a stage of the pipeline that it was trained in.

    Raises:
        InputError: the model is not a language model.
    """
    if config.family not in FAMILIES:
        raise InputError(
            "run_dir", f"{config.name} is a {config.family}", "give the run of a language model"
        )
    how = ComputeOptions(interleave=interleave)
    return lambda rngs: FAMILIES[config.family](config, how, rngs=rngs)


def workload(recipe: Recipe, platform: str) -> Workload:
    """The workload of a recipe.

    Args:
        recipe: the job.
        platform: `cpu`, `cuda` or `gpu`, on which the implementation of attention depends.
    """
    how = ComputeOptions(
        flash=recipe.flash(platform),
        fp8=recipe.precision == "fp8",
        remat=recipe.remat,
        interleave=recipe.interleave,
        moe=recipe.moe,
        capacity_factor=recipe.capacity_factor,
        whole_tokens=needs_whole_tokens(
            recipe.mesh.sizes, recipe.step_options["zero"], recipe.sequence_parallel
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
        weights=zigzag(target_mask(batch)) if "segments" in batch else None,
        z_loss=recipe.z_loss,
    )


def target_mask(batch: Batch) -> jax.Array:
    """Which targets of packed documents count in the loss, booleans [B, T].

    The first token of a document does not follow from the token before it, so it is not a target.
    The target of a sequence's last token is beyond `segments`, so the data makes it negative if it
    belongs to another document.
    """
    segments_BT = batch["segments"]
    same_BT = jnp.pad(
        segments_BT[:, 1:] == segments_BT[:, :-1], ((0, 0), (0, 1)), constant_values=True
    )
    return same_BT & (batch["targets"] >= 0)
