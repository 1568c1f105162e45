"""Where and how often a run saves checkpoints: what `exajax.fit` is given."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from exajax.train.hooks import check_interval


@dataclass(frozen=True)
class Checkpointing:
    """Where and how often a run saves checkpoints, and from where it goes on.

    Attributes:
        folder: shared by all hosts; the run goes on from its newest checkpoint if there is one.
        every: steps between checkpoints; the last step is always saved.
        keep: how many of the newest stay; None keeps all.
        facts: saved with every checkpoint, as JSON. Those under `data` say which samples the steps
            see, and must be those of the checkpoint that the run goes on from.
        local: folder on a disk of each host for checkpoints of its own, which are quick and go on
            on the same mesh only; None saves none.
        local_every: steps between those.

    Raises:
        InputError: `every` or `local_every` is less than 1.
    """

    folder: Path
    every: int = 50
    keep: int | None = 2
    facts: Mapping[str, Any] = field(default_factory=dict)
    local: Path | None = None
    local_every: int = 10

    def __post_init__(self) -> None:
        check_interval("every", self.every)
        check_interval("local_every", self.local_every)

    def tier(self, step: int, *, ends: bool) -> str | None:
        """Returns where to save the state after a step, `shared` or `local`; None for nowhere.

        Args:
            step: its number, from 1.
            ends: whether the run ends with it.
        """
        if ends or step % self.every == 0:
            return "shared"
        return "local" if self.local and step % self.local_every == 0 else None
