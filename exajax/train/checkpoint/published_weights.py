"""A training that begins with published weights instead of random ones."""

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
    """Reads a folder's dimensions and the headers of its weights.

    Args:
        folder: a folder in Hugging Face's form.
        model: what is to be trained.

    Raises:
        InputError: the folder is of another model, or its weights are not those that it says.
    """
    try:
        if not is_folder(folder):
            raise Malformed("", "is not a folder", "give a folder with a config.json")
    except Malformed as error:
        raise error.within(FIELD, folder) from error
    theirs = dataclasses.asdict(lookup(str(folder), FIELD))
    ours = dataclasses.asdict(model)
    # Rotary positions have no parameters, so a sequence of any length goes with them.
    free = {"name", "source"} if model.family == "gpt" else {"name", "source", "seq"}
    for field, value in ours.items():
        if field not in free and theirs[field] != value:
            raise InputError(
                FIELD,
                f"{folder} has {field} {theirs[field]}, and {model.name} has {value}",
                f"give `model` {folder}",
            )
    weights_reader.check(folder, model, FIELD)


def start(step: TrainStep, folder: Path, model: ModelConfig) -> TrainState:
    """Returns the state before the first step, with the weights of a folder on the step's mesh."""
    params = weights_reader.load(folder, model, step.state.params, FIELD)

    def rest(params: Tree) -> TrainState:
        return TrainState((), step.workload.optimizer.init(params), jnp.zeros_like(step.state.step))

    described = step.state._replace(params=())
    shardings = jax.tree.map(lambda leaf: leaf.sharding, described)
    return jax.jit(rest, out_shardings=shardings)(params)._replace(params=params)
