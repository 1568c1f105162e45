"""Faults that a training process inflicts on itself, since nothing outside of it can.

Each happens once, however often the run is restarted: the first process that inflicts it creates a
file with the fault's number.
"""

import json
import os
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from exajax.chaos import faults_file
from exajax.chaos.faults import Fault
from exajax.chaos.injector import leader_of
from exajax.job import environment
from exajax.train.hooks import Every, Hooks

if TYPE_CHECKING:  # this module is imported before JAX
    from exajax.spmd.step import TrainState
    from exajax.spmd.workload import Workload
    from exajax.train.data.batches import Batches, HostBatch

FIRED = "fired"
"""Folder next to the schedule, with a file for each fault that has happened."""

FOR_EVER_S = 1e9


class SelfInflictedFaults(Hooks):
    """The faults of one training process.

    Args:
        faults: the schedule.
        fired: folder with a file for each fault that has happened.
        started_s: start of the run, in seconds since 1970.
        run_dir: the run folder.
        host: number of this process's host.
        sleep: suspends the process for so many seconds.
    """

    def __init__(
        self,
        faults: Sequence[Fault],
        fired: Path,
        started_s: float,
        run_dir: Path,
        host: int,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._fired, self._started_s = fired, started_s
        self._run_dir, self._host, self._sleep = run_dir, host, sleep
        # Listed once, at the start, so that all processes of an attempt agree on what is pending.
        self._pending = [f for f in faults if f.inside and not (fired / str(f.id)).exists()]
        self._bad_steps = {fault.step for fault in self._pending if fault.kind == "nan"}
        self._poisoned: set[int | None] = set()
        self._current = ("start", 0)

    def progress(self, phase: str, step: int) -> None:
        """Notes that training enters a phase; a `stuck` fault suspends the process here."""
        self._current = phase, step
        for fault in self._of_this_host("nan"):
            # By the batch, not by the step: after a roll-back, skipped batches shift the numbers.
            if phase == "step" and fault.step in self._poisoned:
                self._fire(fault)
        for fault in self._due("stuck"):
            self._sleep(FOR_EVER_S if fault.duration_s is None else fault.duration_s)

    def before_commit(self, step: int) -> None:
        """Delays this process's part of a checkpoint, for a `slow-disk` fault."""
        for fault in self._due("slow-disk"):
            self._sleep(fault.duration_s or 0.0)

    def workload(self, workload: "Workload") -> "Workload":
        """The workload with a factor for its loss, if a `nan` fault is pending in this attempt."""
        from exajax.chaos import poison

        return poison.poisoned(workload) if self._bad_steps else workload

    def batches(self, batches: "Batches") -> "Batches":
        """The batches with that factor."""
        from exajax.chaos.poison import PoisonedBatches

        return PoisonedBatches(batches, self._factor) if self._bad_steps else batches

    def held_out(self, batches: "Iterable[HostBatch]") -> "Iterable[HostBatch]":
        """The batches of an evaluation, with a factor of 1."""
        from exajax.chaos.poison import with_poison

        return map(with_poison, batches) if self._bad_steps else batches

    def _factor(self, number: int) -> float:
        if number + 1 not in self._bad_steps:
            return 1.0
        self._poisoned.add(number + 1)
        return float("nan")

    @property
    def callbacks(self) -> Sequence[Every]:  # type: ignore[override]
        """A callback after every step, if a `flip-parameter` fault is pending on any host."""
        flips = any(fault.kind == "flip-parameter" for fault in self._pending)
        return [Every(1, self.flip)] if flips else []

    def flip(self, step: int, state: "TrainState") -> None:
        """Flips a bit of a parameter in the memory of this process's first device, if it is due.

        Every element that the device holds is equally likely; the fault's number is the seed.
        """
        import jax
        import numpy as np

        from exajax.chaos.flip import flip_bit

        device = jax.local_devices()[0]
        for fault in self._due("flip-parameter"):
            generator = np.random.default_rng(fault.id)
            leaves = jax.tree.leaves(state.params)
            sizes = np.array([leaf.addressable_shards[0].data.size for leaf in leaves])
            leaf = leaves[int(generator.choice(len(leaves), p=sizes / sizes.sum()))]
            index = int(generator.integers(leaf.addressable_shards[0].data.size))
            flip_bit(leaf, device, index, int(fault.detail("bit")))

    def _of_this_host(self, kind: str) -> Sequence[Fault]:
        """The pending faults of a kind that hit this host."""
        return [f for f in self._pending if f.kind == kind and self._hits(f)]

    def _hits(self, fault: Fault) -> bool:
        leader = leader_of(self._run_dir) if fault.target == "leader" else 0
        return fault.host(1, leader) == self._host

    def _due(self, kind: str) -> list[Fault]:
        """The faults of a kind that happen now; each is returned once over all restarts."""
        phase, step = self._current
        elapsed_s = time.time() - self._started_s
        due = [
            fault
            for fault in self._of_this_host(kind)
            if (fault.at_s is None or elapsed_s >= fault.at_s)
            and (fault.step is None or step >= fault.step)
            and (fault.phase is None or phase == fault.phase)
        ]
        return [fault for fault in due if self._fire(fault)]

    def _fire(self, fault: Fault) -> bool:
        """Marks a fault as happened; returns whether this process is the first to do so."""
        self._pending.remove(fault)
        phase, step = self._current
        note = {"time": time.time(), "host": self._host, "phase": phase, "step": step}
        new = self._fired / f".{fault.id}.{os.getpid()}"
        new.write_text(json.dumps(note))
        try:
            os.link(new, self._fired / str(fault.id))  # atomic: fails if the file exists
        except FileExistsError:
            return False
        finally:
            new.unlink()
        return True


def faults_from_environment(run_dir: Path) -> Hooks:
    """The faults of the schedule in `EXAJAX_FAULTS`; hooks that do nothing without one.

    The modification time of the schedule is the start of the run.
    """
    schedule, supervised = environment.FAULTS.get(), environment.ATTEMPT.get()
    if schedule is None or supervised is None:
        return Hooks()
    return SelfInflictedFaults(
        faults_file.read(schedule),
        schedule.parent / FIRED,
        schedule.stat().st_mtime,
        run_dir,
        supervised[0],
    )
