"""The checkpoints of a run: saved asynchronously, verified, and restored onto any mesh.

The order of a save is in `saving`, that of a restore in `restoring`; what is written, and where, in
`shared` and `node_local`; the layout on disk in `folder`.
"""

import json
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax

from exajax.job.runtime import json_text
from exajax.spmd.step import TrainState, TrainStep
from exajax.train.checkpoint import folder, node_local
from exajax.train.checkpoint.agreement import Agreement
from exajax.train.checkpoint.checkpointing import Checkpointing
from exajax.train.checkpoint.checksums import Damage, DamagedError
from exajax.train.checkpoint.manifest import Manifest
from exajax.train.checkpoint.node_local import LocalPart
from exajax.train.checkpoint.restoring import Restoring, nothing_proven
from exajax.train.checkpoint.saving import Save, SavePart, SaveResult, SaveStart, TierSaves
from exajax.train.checkpoint.shared import SharedPart
from exajax.train.health import digest
from exajax.train.hooks import Hooks

CLOSE_S = 60.0
"""Seconds that a save has to end when the run does; the last save of a run has no limit."""

LOGGER = logging.getLogger(__name__)


NO_HOOKS = Hooks()


class NotSavedError(RuntimeError):
    """The last checkpoint of a run could not be saved."""


@dataclass(frozen=True)
class Restored:
    """A restored state.

    Attributes:
        step: number of updates that made it.
        tier: where its checkpoint was: `shared` or `local`.
        facts: the facts that were saved with it.
        state: the state on the mesh of the run.
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
        self._saves = {tier: TierSaves(tier, self._agreement) for tier in ("shared", "local")}
        self._restores = 0
        local = options.local
        name = self._agreement.on("open", None, lambda _: self._open(named=local is not None))
        self._local = local.absolute() / name if local else None
        self._shared: int | None = None
        self.latest: int | None = None
        """Step of the newest checkpoint, of any tier, that this object has saved or restored."""

    def restore(self) -> Restored | None:
        """The newest intact state on the mesh of the step, None without any checkpoint.

        Newer checkpoints that are damaged are reported, and moved aside.

        Raises:
            InputError: the checkpoint is of another workload or other data, which is detected
                before an array is read; or all checkpoints are damaged.
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
        """Starts to save a state, and returns when the state may be overwritten.

        While another save to the same tier is in progress, this one is skipped. Skipped and failed
        saves are reported, and training goes on.

        Args:
            done: number of updates that made the state.
            state: the state to save.
            facts: further facts to save with it, as JSON.
            tier: `shared` or `local`.
            wait: whether this is the last save: it waits for the one in progress and for its own
                end, and a failure is an error.

        Raises:
            NotSavedError: `wait` is set, and the save failed.
            NotAgreedError: another process has not come here in time.
        """
        if done == self._shared:
            return
        began_s = time.monotonic()
        tier_saves = self._saves[tier]
        topic, token = tier_saves.begin(wait=wait)
        if token is None:
            why = "the one before it is still being saved"
            self._event("checkpoint-skipped", step=done, tier=tier, reason=why)
            return
        tier_saves.save = Save(
            SaveStart(done, tier, topic, began_s),
            state,
            self._part(done, tier, token, state, facts),
            agreement=self._agreement,
            before_commit=self._hooks.before_commit,
            ended=self._ended,
        )
        if not wait:
            tier_saves.save.copied()
            return
        saved = tier_saves.save.wait()
        if saved.problem:
            good = folder.steps_in(self._folder)
            newest = f"the newest good one is of step {good[0]}" if good else "there is no other"
            raise NotSavedError(
                f"checkpoint {done}, the last one, could not be saved: {saved.problem}; {newest}"
            )

    @property
    def busy(self) -> bool:
        """Whether anything is being saved."""
        return any(one.save and one.save.running for one in self._saves.values())

    def settle(self) -> None:
        """Waits until no save is in progress."""
        for one in self._saves.values():
            if one.save:
                one.save.wait()

    def close(self) -> None:
        """Waits `CLOSE_S` for saves in progress; after an error they may never end."""
        for one in self._saves.values():
            if one.save:
                one.save.join(CLOSE_S)

    def _open(self, *, named: bool) -> str:
        """Creates the folder and removes unfinished saves; returns its identity if `named`."""
        self._folder.mkdir(parents=True, exist_ok=True)
        folder.sweep(self._folder)
        return folder.identity(self._folder) if named else ""

    def _candidates(self, topic: str) -> list[tuple[int, str]]:
        """Step and tier of the checkpoints that all processes can restore, newest first."""
        local_steps = []
        if self._local:
            node_local.sweep(self._local)
            local_steps = node_local.fitting(self._local, self._step)

        def decide(reports: list[list[int]]) -> list[tuple[int, str]]:
            everywhere = set(reports[0]).intersection(*reports[1:])
            candidates = [(step, "local") for step in everywhere]
            candidates += [(step, "shared") for step in folder.steps_in(self._folder)]
            return sorted(candidates, reverse=True)

        agreed = self._agreement.on(f"{topic}/steps", local_steps, decide)
        return [(done, tier) for done, tier in agreed]

    def _path(self, done: int, tier: str) -> Path:
        if tier == "local" and self._local:
            return node_local.host_folder(self._local, done)
        return self._folder / str(done)

    def _part(
        self, done: int, tier: str, token: str, state: TrainState, facts: Mapping[str, Any]
    ) -> SavePart:
        digests = self._digests(state)
        about = json.loads(json_text({**self._options.facts, **facts}))

        def notes() -> dict[str, Any]:
            named = digest.named(digests, self._step.state)
            manifest = Manifest.of(self._step, done, self._seed, named)
            return {folder.MANIFEST: manifest.to_json(), folder.ABOUT: about}

        if tier == "local" and self._local:
            return LocalPart(self._local, done, notes)
        return SharedPart(self._folder, done, token, notes, self._options.keep)

    def _leave(self, topic: str, done: int, damaged: list[int]) -> None:
        """Moves damaged checkpoints aside, and removes local ones newer than the restored one.

        Args:
            topic: of the agreement.
            done: step that the run resumes from.
            damaged: steps of damaged checkpoints in the shared folder.
        """
        if self._local:
            node_local.remove_behind(self._local, done)
        self._agreement.on(
            f"{topic}/aside", None, lambda _: folder.set_aside(self._folder, damaged)
        )

    def _report(self, done: int, tier: str, damages: Sequence[Damage]) -> None:
        for damage in damages:
            self._event(
                "checkpoint-damaged", step=done, tier=tier, file=damage.file, how=damage.how
            )
        more = f", and {len(damages) - 1} more" if damages[1:] else ""
        where = "local " if tier == "local" else ""
        self._warn(f"{where}checkpoint {done} is damaged: {damages[0]}{more}")

    def _ended(self, saved: SaveResult) -> None:
        if saved.problem is not None:
            self._event("checkpoint-failed", step=saved.step, tier=saved.tier, reason=saved.problem)
            self._warn(f"checkpoint {saved.step} was not saved: {saved.problem}")
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

    def _warn(self, line: str) -> None:
        if self._first:
            LOGGER.warning("%s", line)
