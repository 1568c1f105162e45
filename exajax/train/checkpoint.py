"""The checkpoints of a run: saved beside the training, proven, and restored onto any mesh.

How one is written is in `checkpoint_saving`, how it is read in `checkpoint_restoring`, how they lie
on the disk in `checkpoint_folder`.
"""

import json
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax

from exajax.events import EventLog
from exajax.runtime import to_json
from exajax.step import TrainState, TrainStep
from exajax.train import checkpoint_folder as folders
from exajax.train import digest
from exajax.train.agreement import Agreement
from exajax.train.checkpoint_restoring import Damages, Restoring, nothing_proven
from exajax.train.checkpoint_saving import Save, Saved
from exajax.train.manifest import Manifest


class NotSavedError(RuntimeError):
    """The last checkpoint of a run could not be saved."""


@dataclass(frozen=True)
class Restored:
    """A state to go on from.

    Attributes:
        step: updates that it has seen.
        tier: where it was: `shared`.
        about: facts that were saved with it.
        state: on the mesh of the run.
    """

    step: int
    tier: str
    about: Mapping[str, Any] = field(repr=False)
    state: TrainState = field(repr=False)


class Checkpoints:
    """The checkpoints of one run folder. Every process of the job has one.

    Args:
        folder: where they lie; made if it is not there.
        step: the workload on its mesh that saves and restores.
        keep: how many of the newest stay.
        seed: of the run.
        events: where to tell what happens.
        before_commit: called with the step of a checkpoint, in the thread that saves it, when this
            process has written its part and none of it counts yet.
    """

    def __init__(
        self,
        folder: Path,
        step: TrainStep,
        *,
        keep: int = 2,
        seed: int = 0,
        events: EventLog | None = None,
        before_commit: Callable[[int], None] = lambda step: None,
    ) -> None:
        self._folder, self._step, self._keep, self._seed = folder.absolute(), step, keep, seed
        self._first = jax.process_index() == 0
        self._events = events if self._first else None
        self._before_commit = before_commit
        self._agreement = Agreement()
        self._digests = digest.digester(step.state, step.mesh)
        self._save: Save | None = None
        self._turn = 0
        self.latest: int | None = None
        """Step of the newest checkpoint that this object has saved or restored."""

    def restore(self, about: Mapping[str, Any]) -> Restored | None:
        """Returns the newest intact state on the mesh of the step, None if there is none at all.

        Damaged ones that are newer are told, and moved aside. What aborted saves left is removed.

        Args:
            about: facts of the run; what it has under `data` must be what the checkpoint has.

        Raises:
            InputError: it is not of the step's workload or not of this data, which is known before
                an array is read; or all that are there are damaged.
        """
        topic = self._next("restore")
        steps = self._agreement.on(f"{topic}/steps", None, lambda _: self._begin())
        restoring = Restoring(self._step, self._digests, self._agreement, topic)
        damaged: dict[int, Damages] = {}
        for done in steps:
            found = restoring.state_of(self._folder / str(done), done, about)
            if isinstance(found, TrainState):
                self._agreement.on(f"{topic}/aside", None, lambda _: self._set_aside(damaged))
                self._tell("restored", step=done, tier="shared")
                self.latest = done
                facts = json.loads((self._folder / str(done) / folders.ABOUT).read_bytes())
                return Restored(done, "shared", facts, found)
            damaged[done] = found
            self._report(done, found)
        if damaged:
            raise nothing_proven(self._folder, damaged)
        return None

    def save(
        self, done: int, state: TrainState, about: Mapping[str, Any], *, wait: bool = False
    ) -> None:
        """Starts to save a state, and returns when it may be written over.

        If another save is still going on, this one is left out, and told. What fails is told, and
        training goes on.

        Args:
            done: updates that the state has seen.
            state: what to save.
            about: facts to save with it, as JSON.
            wait: whether this is the last chance: it waits for what is going on and for its own
                end, and what fails is an error.

        Raises:
            NotSavedError: it was to wait, and there is no checkpoint.
            NotAgreedError: another process has not come here in time.
        """
        if done == self.latest:
            return
        began_s = time.monotonic()
        before = self._save
        if wait and before:
            before.wait()
        topic = self._next("save")
        busy = self._agreement.on(f"{topic}/busy", before is not None and before.running, any)
        if busy:
            self._tell("checkpoint-skipped", step=done, reason="the last one is still being saved")
            return
        if before:
            self._agreement.forget(before.topic)
        digests = self._digests(state)
        facts = json.loads(to_json(dict(about)))

        def notes() -> dict[str, Any]:
            named = digest.named(digests, self._step.state)
            manifest = Manifest.of(self._step, done, self._seed, named)
            return {folders.MANIFEST: manifest.to_json(), folders.ABOUT: facts}

        self._save = Save(
            done,
            self._folder,
            state,
            notes,
            agreement=self._agreement,
            topic=topic,
            keep=self._keep,
            before_commit=self._before_commit,
            ended=self._ended,
            began_s=began_s,
        )
        if not wait:
            self._save.copied()
            return
        saved = self._save.wait()
        if saved.problem:
            newest = "there is none" if self.latest is None else f"it is of step {self.latest}"
            raise NotSavedError(
                f"checkpoint {done}, the last one, could not be saved: {saved.problem}; "
                f"of the good ones the newest stays: {newest}"
            )

    def close(self) -> None:
        """Waits until what is being saved is on disk."""
        if self._save:
            self._save.wait()

    def _begin(self) -> list[int]:
        self._folder.mkdir(parents=True, exist_ok=True)
        folders.sweep(self._folder)
        return folders.steps_in(self._folder)

    def _set_aside(self, damaged: Mapping[int, Damages]) -> None:
        folders.set_aside(self._folder, damaged)

    def _report(self, done: int, damages: Damages) -> None:
        for damage in damages:
            self._tell("checkpoint-damaged", step=done, file=damage.file, how=damage.how)
        more = f", and {len(damages) - 1} more" if damages[1:] else ""
        self._say(f"checkpoint {done} is damaged: {damages[0]}{more}")

    def _ended(self, saved: Saved) -> None:
        if saved.problem is None:
            self.latest = saved.step
            self._tell(
                "checkpoint-saved",
                step=saved.step,
                stall_s=saved.stall_s,
                seconds=saved.seconds,
                bytes=saved.size_bytes,
            )
        else:
            self._tell("checkpoint-failed", step=saved.step, reason=saved.problem)
            self._say(f"checkpoint {saved.step} was not saved: {saved.problem}")

    def _tell(self, event: str, **facts: Any) -> None:
        if self._events:
            self._events.write(event, **facts)

    def _say(self, line: str) -> None:
        if self._first:
            print(f"exajax: {line}", file=sys.stderr, flush=True)

    def _next(self, what: str) -> str:
        self._turn += 1
        return f"{what}-{self._turn}"
