"""The optimizer and the learning-rate schedule of a recipe, from optax."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import optax
from flax import nnx

from exajax.recipe.matrix_optimizers import (
    is_vector,
    matrix_axes,
    scale_by_factored_rms,
    scale_by_muon,
)
from exajax.recipe.recipe import Recipe

DECAY_SHARE = 0.2
"""Share of the steps in which the schedule `wsd` decays."""


def decay_mask(params: Any) -> Any:
    """For each parameter, whether weight decay applies: to matrices and tables, not to vectors."""
    return jax.tree_util.tree_map_with_path(lambda path, _: not is_vector(path), params)


def optimizer(
    recipe: Recipe, build: Callable[[nnx.Rngs], nnx.Module]
) -> optax.GradientTransformation:
    """The optimizer of a recipe, with global-norm clipping and decoupled weight decay.

    Vectors (norms, biases) do not decay (arXiv:2005.14165, appendix B, lists the same settings).

    Args:
        recipe: the job.
        build: builds the module, whose names of axes Adafactor and Muon need.
    """
    return optax.chain(
        optax.clip_by_global_norm(recipe.clip_norm),
        _direction(recipe, build),
        optax.add_decayed_weights(recipe.weight_decay, mask=decay_mask),
        optax.scale_by_learning_rate(schedule(recipe)),
    )


def _direction(
    recipe: Recipe, build: Callable[[nnx.Rngs], nnx.Module]
) -> optax.GradientTransformation:
    """The transformation of gradients into updates, before weight decay and learning rate."""
    beta1 = 0.9 if recipe.beta1 is None else recipe.beta1
    if recipe.optimizer == "adafactor":
        return scale_by_factored_rms(matrix_axes(build))
    if recipe.optimizer == "lion":
        beta2 = 0.99 if recipe.beta2 is None else recipe.beta2  # arXiv:2302.06675, algorithm 2
        return optax.scale_by_lion(b1=beta1, b2=beta2)
    adam = optax.scale_by_adam(b1=beta1, b2=0.95 if recipe.beta2 is None else recipe.beta2)
    if recipe.optimizer == "muon":
        return scale_by_muon(matrix_axes(build), adam)
    return adam


def schedule(recipe: Recipe) -> optax.Schedule:
    """The learning rate by step: a linear warm-up, then the recipe's schedule.

    `cosine` decays to a tenth; `wsd` is constant and decays linearly to zero in the last fifth
    (warm-up, stable, decay: arXiv:2404.06395). Both end at the recipe's `horizon`, after which the
    rate is constant.
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
    warmup_constant = optax.warmup_constant_schedule(0.0, peak, warmup)
    if recipe.lr_schedule == "constant":
        return warmup_constant
    decay_steps = max(1, round(DECAY_SHARE * recipe.horizon))
    decay = optax.linear_schedule(peak, 0.0, decay_steps)
    start = max(warmup, recipe.horizon - decay_steps)
    return optax.join_schedules([warmup_constant, decay], [start])


def describe_new_horizon(recipe: Recipe, old: int, done: int) -> str | None:
    """A note on how the learning rate changes where a run continues with another horizon.

    Args:
        recipe: the recipe of the continued run.
        old: the horizon before.
        done: steps that were completed before.

    Returns:
        The note; None if the schedules are the same.
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
