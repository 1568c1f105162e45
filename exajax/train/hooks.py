"""What others do in the course of a training process: nothing, unless a hook says otherwise."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # a process is watched before it imports JAX
    from exajax.job.compilation_cache import Compilation
    from exajax.spmd.step import TrainState
    from exajax.spmd.workload import Workload
    from exajax.train.data.batches import Batches, HostBatch


@dataclass(frozen=True)
class Every:
    """Something to do in the course of training.

    Attributes:
        steps: how often.
        do: `do(step, state)`, called on every process with the state behind that step. It may
            read the state and must not keep it: the next step writes over it.
    """

    steps: int
    do: "Callable[[int, TrainState], None]"


class Hooks:
    """Called by a training process at its turns; each method here changes and does nothing."""

    callbacks: Sequence[Every] = ()
    """What else to do behind steps, as often on every process."""

    def workload(self, workload: "Workload") -> "Workload":
        """Returns the workload that is trained in place of the recipe's."""
        return workload

    def batches(self, batches: "Batches") -> "Batches":
        """Returns the batches that are trained on."""
        return batches

    def held_out(self, batches: "Iterable[HostBatch]") -> "Iterable[HostBatch]":
        """Returns the batches of an evaluation."""
        return batches

    def compiled(self, compilation: "Compilation") -> None:
        """Is told how the step was made, before anything is written."""

    def progress(self, phase: str, step: int) -> None:
        """Is told what the loop turns to, one of `train.loop.PHASES`, behind so many updates."""

    def before_commit(self, step: int) -> None:
        """Is called in the thread that saves a checkpoint, before the checkpoint counts."""


@dataclass(frozen=True)
class Chain(Hooks):
    """Several hooks, one after the other; before a commit the last one comes first.

    Attributes:
        hooks: in the order in which they are called. One that may block for ever, or that changes
            what the others see, comes last.
    """

    hooks: Sequence[Hooks]

    @property
    def callbacks(self) -> Sequence[Every]:  # type: ignore[override]
        """Those of all hooks."""
        return [callback for hook in self.hooks for callback in hook.callbacks]

    def workload(self, workload: "Workload") -> "Workload":
        """Returns what the hooks make of a workload."""
        for hook in self.hooks:
            workload = hook.workload(workload)
        return workload

    def batches(self, batches: "Batches") -> "Batches":
        """Returns what the hooks make of the batches."""
        for hook in self.hooks:
            batches = hook.batches(batches)
        return batches

    def held_out(self, batches: "Iterable[HostBatch]") -> "Iterable[HostBatch]":
        """Returns what the hooks make of the batches of an evaluation."""
        for hook in self.hooks:
            batches = hook.held_out(batches)
        return batches

    def compiled(self, compilation: "Compilation") -> None:
        """Tells all hooks."""
        for hook in self.hooks:
            hook.compiled(compilation)

    def progress(self, phase: str, step: int) -> None:
        """Tells all hooks."""
        for hook in self.hooks:
            hook.progress(phase, step)

    def before_commit(self, step: int) -> None:
        """Calls all hooks, the last one first."""
        for hook in reversed(self.hooks):
            hook.before_commit(step)
