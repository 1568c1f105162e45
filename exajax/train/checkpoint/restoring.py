"""Restores a state from a checkpoint, and verifies every byte and array of it.

In this order: the manifest and the facts; whether they are of this model and data; the checksums of
all files, of which every process reads a share; the arrays; their digests, compared with those at
the time of the save. Damage that one process detects is raised on all.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

import jax

from exajax.errors import InputError
from exajax.files.reading import Malformed, read_bytes
from exajax.files.schema import decode_record
from exajax.spmd.step import TrainState, TrainStep
from exajax.spmd.workload import Tree
from exajax.train.checkpoint import checksums, node_local, shared
from exajax.train.checkpoint.agreement import Agreement
from exajax.train.checkpoint.checksums import Damage, DamagedError
from exajax.train.checkpoint.folder import ABOUT, MANIFEST, STATE, check, check_notes
from exajax.train.checkpoint.manifest import About, Manifest, difference
from exajax.train.health import digest

T = TypeVar("T")

READ = {"shared": shared.read_state, "local": node_local.read_state}
"""Functions that read a state, by tier."""


@dataclass(frozen=True)
class Restoring:
    """One restore of a state, made by all processes together.

    Attributes:
        step: the workload on its mesh.
        digests: compiled function that digests a state on that mesh.
        agreement: of the processes.
        topic: prefix of the topics to agree on, a new one for every restore.
    """

    step: TrainStep
    digests: Callable[[Tree], jax.Array]
    agreement: Agreement
    topic: str

    def state_of(
        self, checkpoint: Path, done: int, tier: str, about: Mapping[str, Any]
    ) -> tuple[TrainState, dict[str, Any]]:
        """The state in a checkpoint on the mesh of the step, and the facts saved with it.

        Args:
            checkpoint: its folder, or this process's part where the tier is `local`.
            done: number of updates that made the state.
            tier: `shared` or `local`.
            about: facts of the run, whose `data` must equal that of the checkpoint.

        Raises:
            DamagedError: it is damaged, on this process or another; all raise the same.
            InputError: it is of another workload or of other data, which is detected before an
                array is read.
        """

        def notes() -> tuple[Manifest, dict[str, Any]]:
            check_notes(checkpoint)
            return read_notes(checkpoint, done)

        topic = f"{self.topic}/{tier}-{done}"
        saved, facts = self._together(f"{topic}/notes", notes)
        check_workload(done, saved, Manifest.of(self.step, done))
        check_data(done, facts, about)
        shares = (jax.process_index(), jax.process_count()) if tier == "shared" else (0, 1)
        self._together(f"{topic}/files", lambda: check(checkpoint, *shares))
        state = self._together(f"{topic}/arrays", lambda: self._read(checkpoint, tier, saved))
        self._together(f"{topic}/digests", lambda: self._check_digests(state, saved, done))
        return state, facts

    def _read(self, checkpoint: Path, tier: str, saved: Manifest) -> TrainState:
        try:
            return READ[tier](checkpoint, self.step, saved)
        except (ValueError, KeyError, TypeError, OSError) as error:
            current = Manifest.of(self.step, saved.step)
            origin = f"(saved on {saved.origin}; here it is {current.origin})"
            how = f"cannot be restored: {str(error)[:200]} {origin}"
            raise DamagedError([Damage(STATE, how)]) from error

    def _check_digests(self, state: TrainState, saved: Manifest, done: int) -> None:
        restored = digest.named(self.digests(state), self.step.state)
        damages = [
            Damage(name, "was restored with other bits than were saved")
            for name, bits in restored.items()
            if saved.digests.get(name) != bits
        ]
        step = int(state.step.addressable_data(0))
        if not damages and step != done:
            damages.append(Damage("step", f"is {step} in the state of checkpoint {done}"))
        if damages:
            raise DamagedError(damages)

    def _together(self, topic: str, read: Callable[[], T]) -> T:
        """The result of `read` on this process, if no process detects damage.

        Raises:
            DamagedError: the damage that any process detected; all raise the same.
        """
        value: T | None = None
        damages: tuple[Damage, ...] = ()
        try:
            value = read()
        except DamagedError as error:
            damages = error.damages

        def union(reports: list[list[list[str]]]) -> list[list[str]]:
            by_file = {file: how for report in reports for file, how in report}
            return [[file, how] for file, how in by_file.items()]

        report = [[damage.file, damage.how] for damage in damages]
        agreed = self.agreement.on(topic, report, union)
        if agreed:
            raise DamagedError([Damage(file, how) for file, how in agreed])
        return cast("T", value)


def read_notes(checkpoint: Path, done: int) -> tuple[Manifest, dict[str, Any]]:
    """The manifest and the facts of a checkpoint.

    Args:
        checkpoint: its folder.
        done: its step, by the folder's name.

    Raises:
        DamagedError: one of them is damaged.
    """
    name = MANIFEST
    try:
        manifest = decode_record(read_bytes(checkpoint / name, checksums.MOST_BYTES), Manifest)
        if manifest.step != done:
            how = f"is of step {manifest.step}, and the folder is named {done}"
            raise DamagedError([Damage(name, how)])
        name = ABOUT
        content = read_bytes(checkpoint / name, checksums.MOST_BYTES)
        return manifest, dict(decode_record(content, About))
    except Malformed as error:
        raise DamagedError([Damage(name, str(error))]) from error


def check_workload(done: int, saved: Manifest, wanted: Manifest) -> None:
    """Raises an `InputError` with the first difference between a checkpoint and a workload."""
    differs = difference(saved, wanted)
    if differs:
        raise InputError(
            "run_dir",
            f"checkpoint {done} is of another model or optimizer: {differs}",
            "give the same model, optimizer and precision as before, or another folder",
        )


def check_data(done: int, facts: Mapping[str, Any], about: Mapping[str, Any]) -> None:
    """Checks that a checkpoint was trained on the data of the run.

    Args:
        done: step of the checkpoint.
        facts: the facts that were saved with it.
        about: the facts of the run; `data` is compared where both have it.

    Raises:
        InputError: they differ; names the first fact in which they do.
    """
    saved, current = facts.get("data"), about.get("data")
    if saved is None or current is None or saved == current:
        return
    name = next(name for name in {**current, **saved} if saved.get(name) != current.get(name))
    raise InputError(
        "tokenizer" if name == "tokenizer" else "data",
        f"checkpoint {done} was trained on other data: its {name} is {saved.get(name)!r}, "
        f"here it is {current.get(name)!r}",
        "give the same data and tokenizer as before, or another `run_dir`",
    )


def nothing_proven(folder: Path, damaged: Mapping[int, Sequence[Damage]]) -> InputError:
    """The error for a folder whose checkpoints are all damaged."""
    reasons = "; ".join(f"{done}: {damages[0]}" for done, damages in damaged.items())
    return InputError(
        "run_dir",
        f"no checkpoint in {folder} can be used: {reasons}",
        "put the files back, or remove the damaged checkpoints to begin again",
    )
