"""Checkpoints with Orbax: saved beside the training, restored onto any mesh."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orbax.checkpoint as ocp

from exajax.errors import InputError
from exajax.step import TrainState, TrainStep
from exajax.train import regroup
from exajax.train.manifest import Manifest, difference

DAMAGED = "give the run folder of this model, or remove the damaged checkpoint"


class Checkpoints:
    """The checkpoints of one run folder.

    Args:
        folder: where they lie; made if it is not there.
        step: the workload on its mesh that saves and restores.
        keep: how many of the newest stay.
    """

    def __init__(self, folder: Path, step: TrainStep, keep: int = 2) -> None:
        self._step = step
        self._manager = ocp.CheckpointManager(
            folder.absolute(),
            options=ocp.CheckpointManagerOptions(max_to_keep=keep, create=True),
        )

    @property
    def latest(self) -> int | None:
        """Step of the newest complete checkpoint."""
        return self._manager.latest_step()

    def save(self, done: int, state: TrainState, about: Mapping[str, Any]) -> None:
        """Starts to save a state and returns; the arrays are copied before it does.

        Args:
            done: updates that the state has seen.
            state: what to save.
            about: facts to save with it, as JSON.
        """
        if done == self.latest:
            return
        self._manager.save(
            done,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(state),
                about=ocp.args.JsonSave(dict(about)),
                manifest=ocp.args.JsonSave(Manifest.of(self._step, done).to_json()),
            ),
        )

    def restore(self) -> TrainState:
        """Returns the newest state on the mesh of the step, whatever mesh it was saved on.

        Raises:
            InputError: it is not of the step's workload, which is known before an array is read;
                or it cannot be read.
        """
        self._manager.wait_until_finished()
        done = self.latest
        saved, wanted = self._manifest(done), Manifest.of(self._step, done or 0)
        differs = difference(saved, wanted)
        if differs:
            raise InputError(
                "--run-dir",
                f"checkpoint {done} is of another model or optimizer: {differs}",
                "give the same model, optimizer and precision as before, or another folder",
            )
        form = regroup.as_saved(self._step.state, saved.arrays)
        origin = f"(saved on {saved.origin}; here it is {wanted.origin})"
        state = read(self._manager, done, origin, state=ocp.args.StandardRestore(form))["state"]
        return regroup.regrouped(state, self._step.state)

    def check_data(self, about: Mapping[str, Any]) -> None:
        """Checks that the newest state has seen the samples that the next steps go on with.

        Args:
            about: facts of the run; what it has under `data` is compared, if both have it.

        Raises:
            InputError: they differ; names the first fact in which they do.
        """
        done = self.latest
        theirs = self.about().get("data")
        ours = about.get("data")
        if theirs is None or ours is None or theirs == ours:
            return
        name = next(name for name in {**ours, **theirs} if theirs.get(name) != ours.get(name))
        raise InputError(
            "--tokenizer" if name == "tokenizer" else "--data",
            f"checkpoint {done} was trained on other data: its {name} is {theirs.get(name)!r}, "
            f"here it is {ours.get(name)!r}",
            "give the same data and tokenizer as before, or another --run-dir",
        )

    def about(self) -> dict[str, Any]:
        """Returns the facts that were saved with the newest state."""
        return dict(read(self._manager, self.latest, about=ocp.args.JsonRestore())["about"])

    def close(self) -> None:
        """Waits until everything is on disk, and ends the threads that save."""
        self._manager.close()

    def _manifest(self, done: int | None) -> Manifest:
        found = read(self._manager, done, manifest=ocp.args.JsonRestore())
        try:
            return Manifest.from_json(found["manifest"])
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(
                "--run-dir",
                f"checkpoint {done} has no manifest that can be read "
                f"({type(error).__name__}: {error})",
                DAMAGED,
            ) from error


def read(manager: ocp.CheckpointManager, done: int | None, origin: str = "", **what: Any) -> Any:
    """Returns parts of a checkpoint.

    Args:
        manager: of the folder.
        done: step of the checkpoint.
        origin: what to tell beside an error, about where it comes from.
        what: how to restore each part.

    Raises:
        InputError: a part is not there, or damaged.
    """
    try:
        return manager.restore(done, args=ocp.args.Composite(**what))
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise InputError(
            "--run-dir",
            f"checkpoint {done} cannot be restored: {str(error)[:200]} {origin}",
            DAMAGED,
        ) from error
