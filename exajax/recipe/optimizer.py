"""The optimizer of a recipe, from optax."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import optax
from flax import nnx

from exajax.recipe.matrix_optimizers import (
    is_vector,
    matrices,
    scale_by_factored_rms,
    scale_by_muon,
)
from exajax.recipe.recipe import Recipe

DECAY_SHARE = 0.2
"""Share of the steps in which the schedule `wsd` falls."""


def decays(params: Any) -> Any:
    """Returns for every parameter whether weight decay applies: matrices and tables, no vectors."""
    return jax.tree_util.tree_map_with_path(lambda path, _: not is_vector(path), params)


def optimizer(
    recipe: Recipe, build: Callable[[nnx.Rngs], nnx.Module]
) -> optax.GradientTransformation:
    """Returns the recipe's optimizer behind a global-norm clip, with decoupled weight decay.

    Vectors (norms, biases) do not decay (arXiv:2005.14165, appendix B, lists the same settings).

    Args:
        recipe: what to train.
        build: makes the module; Adafactor and Muon read from it what the axes mean.
    """
    return optax.chain(
        optax.clip_by_global_norm(recipe.clip_norm),
        _direction(recipe, build),
        optax.add_decayed_weights(recipe.weight_decay, mask=decays),
        optax.scale_by_learning_rate(schedule(recipe)),
    )


def _direction(
    recipe: Recipe, build: Callable[[nnx.Rngs], nnx.Module]
) -> optax.GradientTransformation:
    """Returns what turns gradients into a step of length one or so."""
    beta1 = 0.9 if recipe.beta1 is None else recipe.beta1
    if recipe.optimizer == "adafactor":
        return scale_by_factored_rms(matrices(build))
    if recipe.optimizer == "lion":
        beta2 = 0.99 if recipe.beta2 is None else recipe.beta2  # arXiv:2302.06675, algorithm 2
        return optax.scale_by_lion(b1=beta1, b2=beta2)
    adam = optax.scale_by_adam(b1=beta1, b2=0.95 if recipe.beta2 is None else recipe.beta2)
    if recipe.optimizer == "muon":
        return scale_by_muon(matrices(build), adam)
    return adam


def schedule(recipe: Recipe) -> optax.Schedule:
    """Returns the learning rate by step: linear warm-up, then what the recipe's schedule says.

    `cosine` falls to a tenth at the last step; `wsd` stays at the peak and falls to zero along a
    line in the last fifth (warm-up, stable, decay: arXiv:2404.06395); `constant` stays. The last
    step is the recipe's `horizon`; after it the rate keeps its last value.
    """
    peak, warmup = recipe.learning_rate, recipe.warmup_steps
    if recipe.lr_schedule == "cosine":
        return optax.warmup_cosine_decay_schedule(
            init_value=0.0,
            peak_value=peak,
            warmup_steps=warmup,
            decay_steps=max(recipe.horizon, warmup + 1),
            end_value=peak / 10,
        )
    warm = optax.warmup_constant_schedule(0.0, peak, warmup)
    if recipe.lr_schedule == "constant":
        return warm
    falling = max(1, round(DECAY_SHARE * recipe.horizon))
    start = max(warmup, recipe.horizon - falling)
    return optax.join_schedules([warm, optax.linear_schedule(peak, 0.0, falling)], [start])


def stretched(recipe: Recipe, old: int, done: int) -> str | None:
    """Returns what a run that goes on with another horizon does to the learning rate, in words.

    Args:
        recipe: of the run that goes on.
        old: the horizon of the run before.
        done: steps that were made before.

    Returns:
        None where both schedules are the same.
    """
    if old == recipe.horizon or recipe.lr_schedule == "constant":
        return None
    before, after = (
        float(schedule(dataclasses.replace(recipe, schedule_steps=steps))(done))
        for steps in (old, recipe.horizon)
    )
    return (
        f"the learning rate's schedule now has {recipe.horizon} steps and had {old}: step "
        f"{done + 1} gets {after:.3g} instead of {before:.3g}; `schedule_steps` {old} keeps the "
        f"old one"
    )
