"""Data and options of a training process, checked before anything is written or started."""

from pathlib import Path
from typing import Any

from exajax.errors import InputError
from exajax.job import run_folder
from exajax.machine.cluster import load_cluster
from exajax.recipe.recipe import Recipe
from exajax.train.data.corpus import load_corpus
from exajax.train.data.image_batches import ImageBatches
from exajax.train.data.images import load_images
from exajax.train.data.text_batches import TextBatches
from exajax.train.options import TrainOptions


def default_run_dir(recipe: Recipe) -> Path:
    """Returns the run folder of a recipe where none is given, named for model and mesh."""
    return Path(f"runs/{recipe.model.name}-{recipe.mesh}".replace("=", ""))


def open_data(recipe: Recipe, options: TrainOptions) -> TextBatches | ImageBatches:
    """Opens the text or images that the recipe's model reads, as batches.

    Raises:
        InputError: the data or the tokenizer cannot be used, or not with this model.
    """
    if recipe.model.family == "vit":
        if options.tokenizer:
            raise InputError("tokenizer", f"{recipe.model.name} reads images", "leave it out")
        images = load_images(options.data, recipe.model)
        return ImageBatches(images, recipe.global_batch, recipe.seed)
    corpus = load_corpus(
        options.data, options.tokenizer, recipe.seq, recipe.model.vocab, options.bad_lines
    )
    return TextBatches(corpus, recipe.global_batch, recipe.seed, recipe.packed)


def job_of(recipe: Recipe, batches: TextBatches | ImageBatches) -> dict[str, Any]:
    """Returns the identity of a job, as JSON: two runs are of one job if it is equal.

    It has neither the mesh nor the number of steps.
    """
    return {"recipe": recipe.job, "data": batches.identity}


def check(
    recipe: Recipe, options: TrainOptions, *, owns_folder: bool = True
) -> TextBatches | ImageBatches:
    """Checks options, data and run folder, and returns the data. Writes nothing.

    Args:
        recipe: what to train.
        options: of the process.
        owns_folder: whether the run folder has to be free, or this job's; otherwise another process
            has taken it.

    Raises:
        InputError: an option, the data or the run folder cannot be used.
    """
    if options.local_checkpoints:
        run_folder.check_writable(options.local_checkpoints, "local_checkpoints")
    if options.cluster:
        load_cluster(options.cluster).chip.peak(recipe.precision)
    batches = open_data(recipe, options)
    if options.init:
        from exajax.train.checkpoint import published_weights  # it needs JAX

        published_weights.check(options.init, recipe.model)
    if owns_folder:
        run_folder.check(options.run_dir, job_of(recipe, batches))
    return batches
