"""The optimizer of a recipe, from optax."""

from typing import Any

import jax
import optax

from exajax.recipe import Recipe

VECTORS = {"scale", "bias"}
"""Names of parameters that are one vector in each layer, however they are stacked."""


def decays(params: Any) -> Any:
    """Returns for every parameter whether weight decay applies: matrices and tables, no vectors."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: str(getattr(path[-1], "key", path[-1])) not in VECTORS, params
    )


def optimizer(recipe: Recipe) -> optax.GradientTransformation:
    """Returns AdamW behind a global-norm clip, with linear warm-up and a cosine to a tenth.

    Vectors (norms, biases) do not decay (arXiv:2005.14165, appendix B, lists the same settings).
    """
    schedule = optax.warmup_cosine_decay_schedule(
        init_value=0.0,
        peak_value=recipe.learning_rate,
        warmup_steps=recipe.warmup_steps,
        decay_steps=max(recipe.steps, recipe.warmup_steps + 1),
        end_value=recipe.learning_rate / 10,
    )
    return optax.chain(
        optax.clip_by_global_norm(recipe.clip_norm),
        optax.adamw(
            schedule,
            b1=0.9,
            b2=0.95,
            weight_decay=recipe.weight_decay,
            mask=decays,
        ),
    )
