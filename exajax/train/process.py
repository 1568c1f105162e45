"""What a training process was started with: recipe, options, hooks, its rank."""

from dataclasses import dataclass, field
from typing import TextIO

from exajax.job import launchers
from exajax.job.launchers import LaunchInfo
from exajax.recipe.recipe import Recipe
from exajax.train.hooks import Hooks
from exajax.train.options import TrainOptions


@dataclass(frozen=True)
class TrainingProcess:
    """What a training process was started with.

    Attributes:
        recipe: what to train.
        options: of this process.
        out: takes what is printed for a person.
        hooks: what others do in its course.
        owns_folder: whether the run folder's `run.json` is its own to write.
        placement: where the process is in its job.
    """

    recipe: Recipe
    options: TrainOptions
    out: TextIO
    hooks: Hooks = field(default_factory=Hooks)
    owns_folder: bool = True
    placement: LaunchInfo = field(default_factory=launchers.detect)

    @property
    def first(self) -> bool:
        """Whether this is the job's first process, which writes and prints for all."""
        return self.placement.process == 0

    @property
    def host(self) -> int:
        """Number of this process's host, by which others know it."""
        return launchers.host_number(self.placement.process)

    def say(self, text: str) -> None:
        """Prints a line at once."""
        print(text, file=self.out, flush=True)
