"""Training that starts from published weights instead of random ones."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp

from exajax.errors import InputError
from exajax.files.reading import Malformed, is_folder
from exajax.models.dimensions import ModelConfig
from exajax.models.huggingface import weights_reader
from exajax.models.presets import lookup
from exajax.spmd.step import TrainState, TrainStep
from exajax.spmd.workload import Tree

FIELD = "init"


def check(folder: Path, model: ModelConfig) -> None:
    """Checks that a folder's dimensions and weights are those of a model, without loading weights.

    Args:
        folder: a model folder of Hugging Face.
        model: the model to train.

    Raises:
        InputError: the folder is of another model, or its weights contradict its dimensions.
    """
    try:
        if not is_folder(folder):
            raise Malformed("", "is not a folder", "give a folder with a config.json")
    except Malformed as error:
        raise error.within(FIELD, folder) from error
    published = dataclasses.asdict(lookup(str(folder), FIELD))
    # Rotary positions have no parameters, so that any sequence length will do.
    free = {"name", "source"} if model.family == "gpt" else {"name", "source", "seq"}
    for field, value in dataclasses.asdict(model).items():
        if field not in free and published[field] != value:
            raise InputError(
                FIELD,
                f"{folder} has {field} {published[field]}, and {model.name} has {value}",
                f"give `model` {folder}",
            )
    weights_reader.check(folder, model, FIELD)


def start(step: TrainStep, folder: Path, model: ModelConfig) -> TrainState:
    """The state before the first step, with the weights of a folder on the step's mesh."""
    params = weights_reader.load(folder, model, step.state.params, FIELD)

    def rest(params: Tree) -> TrainState:
        return TrainState((), step.workload.optimizer.init(params), jnp.zeros_like(step.state.step))

    described = step.state._replace(params=())
    shardings = jax.tree.map(lambda leaf: leaf.sharding, described)
    return jax.jit(rest, out_shardings=shardings)(params)._replace(params=params)
