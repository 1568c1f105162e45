"""The full description of a job, and the file by which one process hands it to another."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from exajax.errors import InputError
from exajax.files.reading import Malformed, read_json
from exajax.job.runtime import json_text
from exajax.recipe import option
from exajax.recipe.recipe import Recipe
from exajax.resilience.options import JobOptions
from exajax.train.options import TrainOptions

FIELD = "file"
"""Field that input errors about a job file name."""


@dataclass(frozen=True)
class Job:
    """The full description of a job: recipe, training options and supervision.

    Attributes:
        recipe: what to train.
        options: options of every training process.
        supervision: hosts, restarts and deadlines of the job.
        json: whether standard output takes one JSON object and nothing else.
        result: file for the result, where the process that started the job owns the run folder;
            None prints the result, and the job owns the run folder.
    """

    recipe: Recipe
    options: TrainOptions
    supervision: JobOptions = field(default_factory=JobOptions)
    json: bool = False
    result: Path | None = None

    @property
    def owns_folder(self) -> bool:
        """Whether the job writes the run folder's `run.json` itself."""
        return self.result is None

    def in_folder(self, run_dir: Path) -> "Job":
        """The same job in another run folder."""
        return dataclasses.replace(self, options=dataclasses.replace(self.options, run_dir=run_dir))

    def write(self, path: Path) -> Path:
        """Writes the job to a file atomically, and returns the path."""
        content = {
            "recipe": self.recipe.to_json(),
            "options": option.to_json(self.options),
            "supervision": option.to_json(self.supervision),
            "json": self.json,
            "result": self.result and str(self.result),
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{path.name}.new")
        part.write_text(json_text(content, indent=1) + "\n")
        return part.replace(path)

    @classmethod
    def read(cls, path: Path) -> "Job":
        """The job in a file that `write` has written.

        Raises:
            InputError: the file is not there, or damaged.
        """
        try:
            table: Mapping[str, Any] = read_json(path)
            result = table["result"]
            return cls(
                Recipe.from_json(table["recipe"]),
                option.from_json(TrainOptions, table["options"]),
                option.from_json(JobOptions, table["supervision"]),
                table["json"],
                Path(result) if result else None,
            )
        except Malformed as error:
            raise error.within(FIELD, path) from error
        except (KeyError, TypeError, AttributeError) as error:
            raise InputError(FIELD, f"{path} holds no job ({error})", "start it anew") from error
