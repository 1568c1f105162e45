"""The seam of training: what others change, watch or add, from a callback to fault injection."""

import contextlib
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from exajax.errors import InputError

if TYPE_CHECKING:  # a process is watched before it imports JAX
    import jax

    from exajax.job.compilation_cache import Compilation
    from exajax.spmd.step import TrainState, TrainStep
    from exajax.spmd.weighted import Loss
    from exajax.spmd.workload import Workload
    from exajax.train.data.batches import Batches, HostBatch
    from exajax.train.sinks.records import Logger

    Measure = Callable[[Any, Mapping[str, jax.Array]], Loss]
    """`measure(params, batch)`: a mean over the batch's samples, or their `Weighted` sum."""


class Hooks:
    """Called in the course of training, on every process; each method here does nothing.

    `workload`, `batches` and `held_out` are for a training process of the command line, which has
    no step yet; `exajax.fit` calls all others.
    """

    evaluations: "Sequence[Evaluation]" = ()
    """Held-out data to evaluate on."""

    callbacks: "Sequence[Every]" = ()
    """What to do after steps, as often on every process."""

    def workload(self, workload: "Workload") -> "Workload":
        """Returns the workload to train in place of the recipe's."""
        return workload

    def batches(self, batches: "Batches") -> "Batches":
        """Returns the batches to train on."""
        return batches

    def held_out(self, batches: "Iterable[HostBatch]") -> "Iterable[HostBatch]":
        """Returns the batches of an evaluation."""
        return batches

    def compiled(self, compilation: "Compilation") -> None:
        """Called once the step is compiled and known to fit, before anything is written."""

    def loggers(self, resumed_from: int) -> "Sequence[Logger]":
        """Returns where metrics go.

        They get `loss`, `grad_norm`, `data_wait_s`, `step_time_s`, `samples_per_s`, and where they
        are known `learning_rate`, `tokens_per_s`, `validation_loss`, a `validation_...` of every
        measure, and what `rates` adds.

        Args:
            resumed_from: step that the run goes on from, 0 if it begins.
        """
        return ()

    def progress(self, phase: str, step: int) -> None:
        """Called before the loop turns to a phase, one of `exajax.job.events.PHASES`.

        Args:
            phase: what comes next.
            step: number of the step, from 1, where the phase is `step`; else the updates done.
        """

    def around(self, updates: int) -> AbstractContextManager[None] | None:
        """Returns a context for the next update, with no other in flight; None for most updates.

        The time of such an update, and that of the next, is not measured.

        Args:
            updates: made by this call before it.
        """
        return None

    def rates(self, step: "TrainStep", step_time_s: float) -> Mapping[str, float]:
        """Returns further metrics of a step whose time was measured, by name."""
        return {}

    def event(self, name: str, **facts: Any) -> None:
        """Called, on the first process, when a checkpoint or the run's health has news."""

    def before_commit(self, step: int) -> None:
        """Called in the thread that saves a checkpoint, before the checkpoint counts."""


@dataclass(frozen=True)
class Every(Hooks):
    """A callback after every so many steps.

    Attributes:
        steps: how often.
        do: `do(step, state)`, called on every process with the state after that step. It may
            read the state and must not keep it: the next step writes over it.

    Raises:
        InputError: `steps` is less than 1.
    """

    steps: int
    do: "Callable[[int, TrainState], None]"

    def __post_init__(self) -> None:
        check_interval("steps", self.steps)

    @property
    def callbacks(self) -> "Sequence[Every]":  # type: ignore[override]
        """Itself."""
        return [self]


@dataclass(frozen=True)
class Evaluation(Hooks):
    """The mean loss over held-out batches, every so many steps and after the last one.

    Attributes:
        data: returns the batches, the same on every process.
        every: steps between evaluations.
        measures: what else to take the mean of, by name; `loss` replaces the step's own.

    Raises:
        InputError: `every` is less than 1.
    """

    data: "Callable[[], Iterable[HostBatch]]"
    every: int = 50
    measures: "Mapping[str, Measure]" = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_interval("every", self.every)

    @property
    def evaluations(self) -> "Sequence[Evaluation]":  # type: ignore[override]
        """Itself."""
        return [self]


@dataclass(frozen=True)
class Chain(Hooks):
    """Several hooks, called one after the other; before a commit the last one comes first.

    Attributes:
        hooks: in the order in which they are called. One that may block for ever, or that changes
            what the others see, comes last.
    """

    hooks: Sequence[Hooks]

    @functools.cached_property
    def evaluations(self) -> Sequence[Evaluation]:  # type: ignore[override]
        """Those of all hooks, which are asked once."""
        return [evaluation for hook in self.hooks for evaluation in hook.evaluations]

    @functools.cached_property
    def callbacks(self) -> Sequence[Every]:  # type: ignore[override]
        """Those of all hooks, which are asked once."""
        return [callback for hook in self.hooks for callback in hook.callbacks]

    def workload(self, workload: "Workload") -> "Workload":
        """Returns a workload as all hooks change it."""
        for hook in self.hooks:
            workload = hook.workload(workload)
        return workload

    def batches(self, batches: "Batches") -> "Batches":
        """Returns batches as all hooks change them."""
        for hook in self.hooks:
            batches = hook.batches(batches)
        return batches

    def held_out(self, batches: "Iterable[HostBatch]") -> "Iterable[HostBatch]":
        """Returns the batches of an evaluation as all hooks change them."""
        for hook in self.hooks:
            batches = hook.held_out(batches)
        return batches

    def compiled(self, compilation: "Compilation") -> None:
        """Calls all hooks."""
        for hook in self.hooks:
            hook.compiled(compilation)

    def loggers(self, resumed_from: int) -> "Sequence[Logger]":
        """Returns the loggers of all hooks."""
        return [logger for hook in self.hooks for logger in hook.loggers(resumed_from)]

    def progress(self, phase: str, step: int) -> None:
        """Calls all hooks."""
        for hook in self.hooks:
            hook.progress(phase, step)

    def around(self, updates: int) -> AbstractContextManager[None] | None:
        """Returns the contexts of all hooks as one."""
        contexts = [hook.around(updates) for hook in self.hooks]
        given = [context for context in contexts if context is not None]
        return _nested(given) if given else None

    def rates(self, step: "TrainStep", step_time_s: float) -> Mapping[str, float]:
        """Returns the metrics of all hooks."""
        metrics: dict[str, float] = {}
        for hook in self.hooks:
            metrics |= hook.rates(step, step_time_s)
        return metrics

    def event(self, name: str, **facts: Any) -> None:
        """Calls all hooks."""
        for hook in self.hooks:
            hook.event(name, **facts)

    def before_commit(self, step: int) -> None:
        """Calls all hooks, the last one first."""
        for hook in reversed(self.hooks):
            hook.before_commit(step)


@contextlib.contextmanager
def _nested(contexts: Sequence[AbstractContextManager[None]]) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for context in contexts:
            stack.enter_context(context)
        yield


def check_interval(field: str, steps: int) -> None:
    """Raises an `InputError` unless something can happen every so many steps."""
    if steps < 1:
        raise InputError(field, f"it is {steps}", "give a whole number from 1 on")
