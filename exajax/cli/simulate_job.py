"""The file by which the main job has a step simulated in another process (`exajax job FILE`)."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from exajax.errors import InputError
from exajax.job.runtime import json_text
from exajax.recipe.recipe import Recipe

KIND = "simulate"
"""Key of a job file that holds a `SimulateJob`."""


@dataclass(frozen=True)
class SimulateJob:
    """A step to compile and simulate.

    Attributes:
        recipe: what to simulate.
        cluster: name or TOML file of the described machine.
        out: folder for the files of the simulated step.
    """

    recipe: Recipe
    cluster: str
    out: Path

    def write(self, path: Path) -> Path:
        """Writes the job to a file, and returns the path."""
        content = {
            "recipe": self.recipe.to_json(),
            "cluster": self.cluster,
            "out": str(self.out),
        }
        path.write_text(json_text({KIND: content}, indent=1) + "\n")
        return path

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "SimulateJob":
        """The job that `write` wrote, from the content of its file.

        Raises:
            InputError: the content is no such job.
        """
        try:
            job = content[KIND]
            return cls(Recipe.from_json(job["recipe"]), str(job["cluster"]), Path(job["out"]))
        except (KeyError, TypeError, AttributeError) as error:
            raise InputError("file", f"it holds no job ({error})", "start it anew") from error
