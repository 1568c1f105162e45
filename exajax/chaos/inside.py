"""Faults that a training process does to itself, since nothing outside of it can.

Each happens once, however often the run is started again: who does it first makes a file with its
number, which must not be there yet.
"""

import json
import os
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exajax.chaos import faults_file
from exajax.chaos.faults import Fault
from exajax.chaos.injector import leader_of
from exajax.job import environment
from exajax.train.hooks import Every, Hooks

if TYPE_CHECKING:  # what is read here is read before JAX is
    from exajax.spmd.workload import Workload
    from exajax.train.data.batches import Batches, HostBatch

FIRED = "fired"
"""Folder beside the schedule, with a file for each fault that has happened."""

FOR_EVER_S = 1e9


class Inside(Hooks):
    """The faults of one training process.

    Args:
        faults: the schedule.
        fired: folder with a file for each fault that has happened.
        started_s: when the run began, in seconds since 1970.
        run_dir: the run folder.
        host: number of this process's host.
        sleep: waits so many seconds.
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
        # Read once, at the start: all processes of an attempt then know the same.
        self._left = [f for f in faults if f.inside and not (fired / str(f.id)).exists()]
        self._bad_steps = {fault.step for fault in self._left if fault.kind == "nan"}
        self._fed: set[int | None] = set()
        self._at = ("start", 0)

    def progress(self, phase: str, step: int) -> None:
        """Takes note that training turns to a phase; may not come back from it."""
        self._at = phase, step
        for fault in self._mine("nan"):
            # Not at the step of its number: batches that a roll-back has left out shift them.
            if phase == "step" and fault.step in self._fed:
                self._fire(fault)
        for fault in self._due("stuck"):
            self._sleep(FOR_EVER_S if fault.duration_s is None else fault.duration_s)

    def before_commit(self, step: int) -> None:
        """Is late with this process's part of a checkpoint."""
        for fault in self._due("slow-disk"):
            self._sleep(fault.duration_s or 0.0)

    def workload(self, workload: "Workload") -> "Workload":
        """Returns a workload whose gradient can be spoilt, if one is to be in this attempt."""
        from exajax.chaos import poison

        return poison.poisoned(workload) if self._bad_steps else workload

    def batches(self, batches: "Batches") -> "Batches":
        """Returns the batches for that workload."""
        from exajax.chaos.poison import PoisonedBatches

        return PoisonedBatches(batches, self._factor) if self._bad_steps else batches

    def held_out(self, batches: "Iterable[HostBatch]") -> "Iterable[HostBatch]":
        """Returns batches to evaluate that workload on."""
        from exajax.chaos.poison import with_poison

        return map(with_poison, batches) if self._bad_steps else batches

    def _factor(self, number: int) -> float:
        if number + 1 not in self._bad_steps:
            return 1.0
        self._fed.add(number + 1)
        return float("nan")

    @property
    def callbacks(self) -> Sequence[Every]:  # type: ignore[override]
        """What looks behind every step whether to flip a bit, if one is to be on any host."""
        flips = any(fault.kind == "flip-parameter" for fault in self._left)
        return [Every(1, self.flip)] if flips else []

    def flip(self, step: int, state: Any) -> None:
        """Turns a bit of a parameter over, in the memory of this process's first device.

        Every element that the device holds is equally likely; which one follows from the fault.
        """
        import jax
        import numpy as np

        from exajax.chaos.flip import flip_bit

        device = jax.local_devices()[0]
        for fault in self._due("flip-parameter"):
            draw = np.random.default_rng(fault.id)
            leaves = jax.tree.leaves(state.params)
            sizes = np.array([leaf.addressable_shards[0].data.size for leaf in leaves])
            leaf = leaves[int(draw.choice(len(leaves), p=sizes / sizes.sum()))]
            index = int(draw.integers(leaf.addressable_shards[0].data.size))
            flip_bit(leaf, device, index, int(fault.detail("bit")))

    def _mine(self, kind: str) -> Sequence[Fault]:
        return [f for f in self._left if f.kind == kind and self._is_here(f)]

    def _is_here(self, fault: Fault) -> bool:
        leader = leader_of(self._run_dir) if fault.target == "leader" else 0
        return fault.host(1, leader) == self._host

    def _due(self, kind: str) -> list[Fault]:
        """Returns the faults of a kind that happen now, and keeps them from happening again."""
        phase, step = self._at
        elapsed_s = time.time() - self._started_s
        due = [
            fault
            for fault in self._mine(kind)
            if (fault.at_s is None or elapsed_s >= fault.at_s)
            and (fault.step is None or step >= fault.step)
            and (fault.phase is None or phase == fault.phase)
        ]
        return [fault for fault in due if self._fire(fault)]

    def _fire(self, fault: Fault) -> bool:
        self._left.remove(fault)
        phase, step = self._at
        note = {"time": time.time(), "host": self._host, "phase": phase, "step": step}
        new = self._fired / f".{fault.id}.{os.getpid()}"
        new.write_text(json.dumps(note))
        try:
            os.link(new, self._fired / str(fault.id))  # fails if it is there, and is never half
        except FileExistsError:
            return False
        finally:
            new.unlink()
        return True


def of_environment(run_dir: Path) -> Hooks:
    """Returns the faults that the environment has for this process: mostly none.

    The run began when their file was made.
    """
    schedule, place = environment.FAULTS.get(), environment.ATTEMPT.get()
    if schedule is None or place is None:
        return Hooks()
    faults = faults_file.read(schedule)
    return Inside(faults, schedule.parent / FIRED, schedule.stat().st_mtime, run_dir, place[0])
