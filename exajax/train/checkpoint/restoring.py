"""Going on from a checkpoint: nothing is used that is not known to be what was saved.

In this order: what the checkpoint says of itself; whether it is of this model and data; the
checksums of all files, every process reading its part; the arrays; their digests, against those of
the moment they were saved. Damage that one process finds counts for all.
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
from exajax.train.checkpoint import folder as folders
from exajax.train.checkpoint.agreement import Agreement
from exajax.train.checkpoint.checksums import Damage, DamagedError
from exajax.train.checkpoint.manifest import About, Manifest, difference
from exajax.train.health import digest

T = TypeVar("T")

READ = {"shared": shared.read_state, "local": node_local.read_state}
"""By tier: what reads a state."""


@dataclass(frozen=True)
class Restoring:
    """What it takes to go on from a checkpoint.

    Attributes:
        step: the workload on its mesh.
        digests: compiled, of a state on that mesh.
        agreement: where the processes agree.
        topic: on what; a new one for every restore.
    """

    step: TrainStep
    digests: Callable[[Tree], jax.Array]
    agreement: Agreement
    topic: str

    def state_of(
        self, checkpoint: Path, done: int, tier: str, about: Mapping[str, Any]
    ) -> tuple[TrainState, dict[str, Any]]:
        """Returns the state of a checkpoint on the mesh of the step, and the facts saved with it.

        Args:
            checkpoint: its folder, or this process's where the tier is `local`.
            done: updates that the state has seen.
            tier: `shared` or `local`.
            about: facts of the run; what it has under `data` must be what the checkpoint has.

        Raises:
            DamagedError: it is not what was saved, on this process or another; all raise the same.
            InputError: it is of another workload or of other data, which is known before an array
                is read.
        """

        def notes() -> tuple[Manifest, dict[str, Any]]:
            folders.check_notes(checkpoint)
            return read_notes(checkpoint, done)

        topic = f"{self.topic}/{tier}-{done}"
        saved, facts = self._together(f"{topic}/notes", notes)
        check_workload(done, saved, Manifest.of(self.step, done))
        check_data(done, facts, about)
        shares = (jax.process_index(), jax.process_count()) if tier == "shared" else (0, 1)
        self._together(f"{topic}/files", lambda: folders.check(checkpoint, *shares))
        state = self._together(f"{topic}/arrays", lambda: self._read(checkpoint, tier, saved))
        self._together(f"{topic}/digests", lambda: self._check_digests(state, saved, done))
        return state, facts

    def _read(self, checkpoint: Path, tier: str, saved: Manifest) -> TrainState:
        try:
            return READ[tier](checkpoint, self.step, saved)
        except (ValueError, KeyError, TypeError, OSError) as error:
            here = Manifest.of(self.step, saved.step)
            origin = f"(saved on {saved.origin}; here it is {here.origin})"
            how = f"cannot be restored: {str(error)[:200]} {origin}"
            raise DamagedError([Damage(folders.STATE, how)]) from error

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
        """Returns what this process reads, once no process has found damage in what it reads.

        Raises:
            DamagedError: what any process has found; all raise the same.
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
    """Returns manifest and facts of a checkpoint.

    Args:
        checkpoint: its folder.
        done: updates that its state has seen, by the folder's name.

    Raises:
        DamagedError: one of them cannot be used.
    """
    name = folders.MANIFEST
    try:
        manifest = decode_record(read_bytes(checkpoint / name, checksums.MOST_BYTES), Manifest)
        if manifest.step != done:
            how = f"is of step {manifest.step}, and the folder is named {done}"
            raise DamagedError([Damage(name, how)])
        name = folders.ABOUT
        content = read_bytes(checkpoint / name, checksums.MOST_BYTES)
        return manifest, dict(decode_record(content, About))
    except Malformed as error:
        raise DamagedError([Damage(name, str(error))]) from error


def check_workload(done: int, saved: Manifest, wanted: Manifest) -> None:
    """Raises an `InputError` if a checkpoint is not of a workload; names the first difference."""
    differs = difference(saved, wanted)
    if differs:
        raise InputError(
            "run_dir",
            f"checkpoint {done} is of another model or optimizer: {differs}",
            "give the same model, optimizer and precision as before, or another folder",
        )


def check_data(done: int, facts: Mapping[str, Any], about: Mapping[str, Any]) -> None:
    """Checks that a state has seen the samples that the next steps go on with.

    Args:
        done: step of the checkpoint.
        facts: that were saved with it.
        about: facts of the run; what both have under `data` is compared.

    Raises:
        InputError: they differ; names the first fact in which they do.
    """
    theirs, ours = facts.get("data"), about.get("data")
    if theirs is None or ours is None or theirs == ours:
        return
    name = next(name for name in {**ours, **theirs} if theirs.get(name) != ours.get(name))
    raise InputError(
        "tokenizer" if name == "tokenizer" else "data",
        f"checkpoint {done} was trained on other data: its {name} is {theirs.get(name)!r}, "
        f"here it is {ours.get(name)!r}",
        "give the same data and tokenizer as before, or another `run_dir`",
    )


def nothing_proven(folder: Path, damaged: Mapping[int, Sequence[Damage]]) -> InputError:
    """Returns the error that none of the checkpoints in a folder can be used."""
    said = "; ".join(f"{done}: {damages[0]}" for done, damages in damaged.items())
    return InputError(
        "run_dir",
        f"no checkpoint in {folder} can be used: {said}",
        "put the files back, or remove the damaged checkpoints to begin again",
    )
