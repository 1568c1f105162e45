"""A training process from its options to its result: check, join the job, compare, train.

Its parts: `inputs` reads and checks, `same_start` compares hosts, `training` builds the step and
calls `loop.fit`, `reporting` writes the run folder, `summary` makes the result.
"""

from typing import Any

from exajax.errors import InputError
from exajax.job import distributed
from exajax.job.provenance import start_versions
from exajax.recipe import option
from exajax.train import inputs
from exajax.train.data.image_batches import ImageBatches
from exajax.train.data.text_batches import TextBatches
from exajax.train.options import TrainOptions
from exajax.train.process import TrainingProcess


def run(process: TrainingProcess) -> dict[str, Any]:
    """Trains as one process of a job; the first one returns the result of `exajax train --json`.

    Raises:
        InputError: an option, the data or the run folder cannot be used, on this host or another,
            or the hosts do not start from the same.
        RunFailed: something happened that no restart mends.
    """
    problem: InputError | None = None
    batches: TextBatches | ImageBatches | None = None
    try:
        batches = inputs.check(process.recipe, process.options, owns_folder=process.owns_folder)
    except InputError as error:
        problem = error
    distributed.initialize(process.placement, process.recipe.mesh)

    from exajax.train import same_start, training  # they need JAX, which has just been set up

    facts = {} if batches is None else _facts(process, batches)
    same_start.check(process.host, problem, facts)
    assert batches  # else `check` has raised
    return training.train(process, batches)


def _facts(process: TrainingProcess, batches: TextBatches | ImageBatches) -> dict[str, Any]:
    """Returns what must be equal on all hosts, as JSON: versions, recipe, options and data."""
    course = option.option_names(TrainOptions, "course")
    options = option.to_json(process.options)
    return {
        "versions": start_versions(),
        "recipe": process.recipe.to_json(),
        "options": {name: value for name, value in options.items() if name in course},
        "data": {"identity": batches.identity, "text": batches.corpus.to_json()},
    }
