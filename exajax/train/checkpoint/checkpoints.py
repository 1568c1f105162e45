"""The checkpoints of a run: saved beside the training, proven, and restored onto any mesh.

How a save goes is in `checkpoint_saving`, how one is read in `checkpoint_restoring`; what is
written and where in `checkpoint_shared` and `checkpoint_local`, and how it lies there in
`checkpoint_folder`.
"""

import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax

from exajax.job.runtime import json_text
from exajax.spmd.step import TrainState, TrainStep
from exajax.train.checkpoint import folder as folders
from exajax.train.checkpoint import node_local as local_disk
from exajax.train.checkpoint.agreement import Agreement
from exajax.train.checkpoint.checkpointing import Checkpointing
from exajax.train.checkpoint.checksums import Damage, DamagedError
from exajax.train.checkpoint.manifest import Manifest
from exajax.train.checkpoint.node_local import LocalPart
from exajax.train.checkpoint.restoring import Restoring, nothing_proven
from exajax.train.checkpoint.saving import Lane, Part, Save, Saved
from exajax.train.checkpoint.shared import SharedPart
from exajax.train.health import digest
from exajax.train.hooks import Hooks

CLOSE_S = 60.0
"""Time that a save has to end when the run does; the last one of a run is always waited for."""


NO_HOOKS = Hooks()


class NotSavedError(RuntimeError):
    """The last checkpoint of a run could not be saved."""


@dataclass(frozen=True)
class Restored:
    """A state to go on from.

    Attributes:
        step: updates that it has seen.
        tier: where it was: `shared` or `local`.
        facts: that were saved with it.
        state: on the mesh of the run.
    """

    step: int
    tier: str
    facts: Mapping[str, Any] = field(repr=False)
    state: TrainState = field(repr=False)


class Checkpoints:
    """The checkpoints of one run folder. Every process of the job has one.

    Args:
        options: where they lie, and what is saved with them; the folder is made if it is not there.
        step: the workload on its mesh that saves and restores.
        seed: of the run.
        hooks: called before a commit, and with what becomes of checkpoints.
    """

    def __init__(
        self,
        options: Checkpointing,
        step: TrainStep,
        seed: int = 0,
        hooks: Hooks = NO_HOOKS,
    ) -> None:
        self._options, self._step, self._seed, self._hooks = options, step, seed, hooks
        self._folder = options.folder.absolute()
        self._first = jax.process_index() == 0
        self._agreement = Agreement()
        self._digests = digest.digester(step.state, step.mesh)
        self._lanes = {tier: Lane(tier, self._agreement) for tier in ("shared", "local")}
        self._restores = 0
        local = options.local
        name = self._agreement.on("open", None, lambda _: self._open(named=local is not None))
        self._local = local.absolute() / name if local else None
        self._shared: int | None = None
        self.latest: int | None = None
        """Step of the newest checkpoint, of any tier, that this object has saved or restored."""

    def restore(self) -> Restored | None:
        """Returns the newest intact state on the mesh of the step, None if there is none at all.

        Damaged ones that are newer are reported, and moved aside.

        Raises:
            InputError: it is not of the step's workload or not of this data, which is known before
                an array is read; or all that are there are damaged.
        """
        self._restores += 1
        topic = f"restore-{self._restores}"
        restoring = Restoring(self._step, self._digests, self._agreement, topic)
        damaged: dict[tuple[int, str], Sequence[Damage]] = {}
        for done, tier in self._candidates(topic):
            try:
                state, facts = restoring.state_of(
                    self._path(done, tier), done, tier, self._options.facts
                )
            except DamagedError as error:
                damaged[done, tier] = error.damages
                self._report(done, tier, error.damages)
                continue
            self._leave(topic, done, [step for step, where in damaged if where == "shared"])
            self._event("restored", step=done, tier=tier)
            self.latest = done
            self._shared = done if tier == "shared" else None
            return Restored(done, tier, facts, state)
        if damaged:
            raise nothing_proven(self._folder, {done: how for (done, _), how in damaged.items()})
        return None

    def save(
        self,
        done: int,
        state: TrainState,
        facts: Mapping[str, Any],
        *,
        tier: str = "shared",
        wait: bool = False,
    ) -> None:
        """Starts to save a state, and returns when it may be written over.

        If another save to this tier is still going on, this one is left out. That, and what fails,
        is reported, and training goes on.

        Args:
            done: updates that the state has seen.
            state: what to save.
            facts: saved with it beside those of every checkpoint, as JSON.
            tier: `shared` or `local`.
            wait: whether this is the last chance: it waits for what is going on and for its own
                end, and what fails is an error.

        Raises:
            NotSavedError: it was to wait, and there is no checkpoint.
            NotAgreedError: another process has not come here in time.
        """
        if done == self._shared:
            return
        began_s = time.monotonic()
        lane = self._lanes[tier]
        topic, token = lane.turn(wait=wait)
        if token is None:
            why = "the one before it is still being saved"
            self._event("checkpoint-skipped", step=done, tier=tier, reason=why)
            return
        lane.save = Save(
            done,
            tier,
            state,
            self._part(done, tier, token, state, facts),
            agreement=self._agreement,
            topic=topic,
            before_commit=self._hooks.before_commit,
            ended=self._ended,
            began_s=began_s,
        )
        if not wait:
            lane.save.copied()
            return
        saved = lane.save.wait()
        if saved.problem:
            good = folders.steps_in(self._folder)
            newest = f"the newest good one is of step {good[0]}" if good else "there is no other"
            raise NotSavedError(
                f"checkpoint {done}, the last one, could not be saved: {saved.problem}; {newest}"
            )

    @property
    def busy(self) -> bool:
        """Whether anything is being saved."""
        return any(lane.save and lane.save.running for lane in self._lanes.values())

    def settle(self) -> None:
        """Waits until nothing is being saved."""
        for lane in self._lanes.values():
            if lane.save:
                lane.save.wait()

    def close(self) -> None:
        """Gives what is being saved some time to end; after an error there may be no end to it."""
        for lane in self._lanes.values():
            if lane.save:
                lane.save.join(CLOSE_S)

    def _open(self, *, named: bool) -> str:
        """Makes the folder, and removes what aborted saves left; returns its name, if it is one."""
        self._folder.mkdir(parents=True, exist_ok=True)
        folders.sweep(self._folder)
        return folders.identity(self._folder) if named else ""

    def _candidates(self, topic: str) -> list[tuple[int, str]]:
        """Returns step and tier of what may be restored, newest first, as all processes see it."""
        mine = []
        if self._local:
            local_disk.sweep(self._local)
            mine = local_disk.fitting(self._local, self._step)

        def decide(said: list[list[int]]) -> list[tuple[int, str]]:
            everywhere = set(said[0]).intersection(*said[1:])
            shared = folders.steps_in(self._folder)
            found = [(step, "local") for step in everywhere] + [(step, "shared") for step in shared]
            return sorted(found, reverse=True)

        return [(done, tier) for done, tier in self._agreement.on(f"{topic}/steps", mine, decide)]

    def _path(self, done: int, tier: str) -> Path:
        if tier == "local" and self._local:
            return local_disk.host_folder(self._local, done)
        return self._folder / str(done)

    def _part(
        self, done: int, tier: str, token: str, state: TrainState, facts: Mapping[str, Any]
    ) -> Part:
        digests = self._digests(state)
        about = json.loads(json_text({**self._options.facts, **facts}))

        def notes() -> dict[str, Any]:
            named = digest.named(digests, self._step.state)
            manifest = Manifest.of(self._step, done, self._seed, named)
            return {folders.MANIFEST: manifest.to_json(), folders.ABOUT: about}

        if tier == "local" and self._local:
            return LocalPart(self._local, done, notes)
        return SharedPart(self._folder, done, token, notes, self._options.keep)

    def _leave(self, topic: str, done: int, damaged: list[int]) -> None:
        """Moves damaged checkpoints aside, and removes local ones of a future that is now another.

        Args:
            topic: to agree on.
            done: step that the run goes on from.
            damaged: steps in the shared folder.
        """
        if self._local:
            local_disk.remove_behind(self._local, done)
        self._agreement.on(
            f"{topic}/aside", None, lambda _: folders.set_aside(self._folder, damaged)
        )

    def _report(self, done: int, tier: str, damages: Sequence[Damage]) -> None:
        for damage in damages:
            self._event(
                "checkpoint-damaged", step=done, tier=tier, file=damage.file, how=damage.how
            )
        more = f", and {len(damages) - 1} more" if damages[1:] else ""
        where = "local " if tier == "local" else ""
        self._say(f"{where}checkpoint {done} is damaged: {damages[0]}{more}")

    def _ended(self, saved: Saved) -> None:
        if saved.problem is not None:
            self._event("checkpoint-failed", step=saved.step, tier=saved.tier, reason=saved.problem)
            self._say(f"checkpoint {saved.step} was not saved: {saved.problem}")
            return
        self.latest = saved.step
        if saved.tier == "shared":
            self._shared = saved.step
        self._event(
            "checkpoint-saved",
            step=saved.step,
            tier=saved.tier,
            stall_s=saved.stall_s,
            seconds=saved.seconds,
            bytes=saved.size_bytes,
        )

    def _event(self, event: str, **facts: Any) -> None:
        if self._first:
            self._hooks.event(event, **facts)

    def _say(self, line: str) -> None:
        if self._first:
            print(f"exajax: {line}", file=sys.stderr, flush=True)
