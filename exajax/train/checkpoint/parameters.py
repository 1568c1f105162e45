"""The parameters in a run's newest checkpoint, opened without the rest of the state."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax

from exajax.errors import InputError
from exajax.files.reading import Malformed
from exajax.files.schema import Text, checked
from exajax.models.dimensions import ModelConfig
from exajax.models.model_file import model_of_record
from exajax.spmd.workload import Tree
from exajax.train.checkpoint import orbax_arrays
from exajax.train.checkpoint.checksums import DamagedError
from exajax.train.checkpoint.folder import STATE, check, steps_in
from exajax.train.checkpoint.manifest import Manifest, name_of
from exajax.train.checkpoint.restoring import nothing_proven, read_notes
from exajax.train.data.tokenizer import BYTES, KEPT, Tokenizer, load_tokenizer

LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainedModel:
    """The newest intact checkpoint of a run, opened to use its parameters.

    Attributes:
        step: number of updates that made the parameters.
        about: the facts that were saved with them.
    """

    step: int
    about: Mapping[str, Any]
    _manifest: Manifest = field(repr=False)
    _folder: Path = field(repr=False)

    @property
    def model(self) -> ModelConfig:
        """Dimensions of the model.

        Raises:
            InputError: the run was not of a model that exajax knows.
        """
        try:
            return model_of_record(self.about["recipe"]["model"])
        except (KeyError, TypeError, Malformed) as error:
            raise InputError(
                "run_dir",
                f"checkpoint {self.step} does not say which model it is of ({error})",
                "give a run of exajax train",
            ) from error

    @property
    def tokenizer(self) -> str:
        """Label of the tokenizer that the model was trained with (`Vocabulary.label`).

        Raises:
            InputError: it was trained on something else.
        """
        try:
            return checked(Text, self.about["data"]["tokenizer"])
        except (KeyError, TypeError, Malformed) as error:
            raise InputError(
                "run_dir",
                f"checkpoint {self.step} does not say which tokenizer it was trained with",
                "give the run of a language model",
            ) from error

    @property
    def interleave(self) -> int:
        """Number of parts that the layers are stored in: model chunks of a pipeline stage."""
        return self._manifest.parts

    def params(self, described: Tree) -> Tree:
        """The parameters in the types and shardings of `described`.

        Raises:
            InputError: they are of another model, or cannot be read.
        """
        wanted = {"params": described}
        self._check_shapes(wanted)
        try:
            return orbax_arrays.read(self._folder / STATE, wanted, partial=True)["params"]
        except (ValueError, OSError) as error:
            raise InputError(
                "run_dir",
                f"checkpoint {self.step} cannot be restored: {str(error)[:200]}",
                "give the run folder of this model",
            ) from error

    def _check_shapes(self, wanted: Tree) -> None:
        """Raises an `InputError` for the first array that was not saved in the shape of `wanted`.

        Orbax would print the traceback of every other array.
        """
        for path, leaf in jax.tree_util.tree_leaves_with_path(wanted):
            name = name_of(path)
            saved = self._manifest.arrays.get(name)
            if saved is None or saved.shape != leaf.shape:
                there = f"of shape {list(saved.shape)}" if saved else "not there"
                raise InputError(
                    "run_dir",
                    f"checkpoint {self.step} is of another model than it says: {name} is {there}, "
                    f"and {self.model.name} has {list(leaf.shape)}",
                    "put its files back, or train again",
                )


def open_trained_model(run_dir: Path) -> TrainedModel:
    """Opens the newest intact checkpoint of a run, after every byte of it is verified.

    Nothing is written, so that the run may go on meanwhile. Damaged checkpoints are logged.

    Raises:
        InputError: there is no intact checkpoint.
    """
    folder = run_dir / "checkpoints"
    damaged = {}
    for step in steps_in(folder):
        try:
            check(folder / str(step))
            manifest, about = read_notes(folder / str(step), step)
            return TrainedModel(step, about, manifest, folder / str(step))
        except DamagedError as error:
            damaged[step] = error.damages
            LOGGER.warning("checkpoint %d is damaged: %s", step, error.damages[0])
    if damaged:
        raise nothing_proven(folder, damaged)
    raise InputError("run_dir", f"{run_dir} holds no checkpoint", "train there first")


def run_tokenizer(run: TrainedModel, run_dir: Path) -> Tokenizer:
    """The tokenizer that a run was trained with: bytes, or the file in its folder.

    Raises:
        InputError: the file is not there, or is none.
    """
    if run.tokenizer.startswith(BYTES):
        return load_tokenizer(BYTES)
    file = run_dir / KEPT
    if not file.exists():
        raise InputError(
            "run_dir",
            f"{run_dir} has no {KEPT}, and was trained with {run.tokenizer}",
            "give it with `tokenizer`",
        )
    return load_tokenizer(str(file))


def check_tokenizer(run: TrainedModel, tokenizer: Tokenizer) -> None:
    """Raises an `InputError` if a run was not trained on the tokens of a tokenizer."""
    if run.tokenizer != tokenizer.label:
        raise InputError(
            "tokenizer",
            f"{run.model.name} was trained with {run.tokenizer}, and this is {tokenizer.label}",
            "give the tokenizer of the run",
        )
