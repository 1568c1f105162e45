"""The training loop: resume, step, evaluate, save, stop."""

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from exajax.errors import InputError
from exajax.job.compilation_cache import Compilation
from exajax.spmd.idle_axes import warn_of_idle_axes
from exajax.spmd.step import TrainState, TrainStep
from exajax.train.checkpoint.checkpointing import Checkpointing
from exajax.train.checkpoint.checkpoints import Checkpoints
from exajax.train.data.batches import Batches, HostBatch, WholeBatches
from exajax.train.data.skipping import Skipping
from exajax.train.health import bad_steps
from exajax.train.health.bad_steps import Policy, RollBack
from exajax.train.health.watch import Health
from exajax.train.hooks import Chain, Hooks
from exajax.train.run_state import CompiledStep, RunState
from exajax.train.stopping import StopRequest


@dataclass(frozen=True)
class Fit:
    """How a run ended.

    Attributes:
        step: updates done in total.
        losses: loss of every step that this call made.
        step_times_s: seconds of its steps, without those that compiled, evaluated, saved or were
            traced.
        data_wait_s: seconds that the loop waited for the batch of every step of this call.
        validation_loss: the last one, None if there was no held-out data.
        resumed_from: step of the checkpoint it went on from, None if it began.
        interrupted: whether it was asked to stop before the last step.
        compilation: how the step was made.
        state: the state it ended with.
    """

    step: int
    losses: list[float]
    step_times_s: list[float]
    data_wait_s: list[float]
    validation_loss: float | None
    resumed_from: int | None
    interrupted: bool
    compilation: Compilation
    state: TrainState = field(repr=False)


def fit(
    step: TrainStep,
    batches: Batches | Callable[[int], HostBatch],
    *,
    steps: int,
    seed: int = 0,
    checkpoints: Checkpointing | None = None,
    policy: Policy = bad_steps.DEFAULT,
    hooks: Sequence[Hooks] = (),
) -> Fit:
    """Trains until `steps` updates are done, going on from the newest checkpoint if there is one.

    Args:
        step: the workload on its mesh.
        batches: a `Batches`, from which each process reads its own rows; or a function that
            returns the whole batch of a step, by its number from 0, the same on every process.
        steps: updates in total, those before a resume included.
        seed: of the first parameters.
        checkpoints: where and how often to save; None saves nothing.
        policy: what to do about bad steps, and how often to look for corruption and slow hosts.
        hooks: what else to do, measure or watch: `Evaluation`, `Every`, `Profile`, `Mfu`, or a
            class of one's own with loggers.

    Raises:
        InputError: a step does not fit a device's memory, or the checkpoint is of
            another workload or other data, or all checkpoints are damaged.
        NotSavedError: the last checkpoint could not be saved.
        RunFailed: a step or a host was bad, and the policy stops or has nothing left to try.
    """
    if policy.on_nan == "skip" and not step.options.get("skip_bad"):
        raise InputError("on_nan", "the step does not skip", "build it with skip_bad=True")
    if not isinstance(batches, Skipping):
        batches = Skipping(batches if isinstance(batches, Batches) else WholeBatches(batches))
    chain = Chain(hooks)
    chain.progress("compile", 0)
    warn_of_idle_axes(step)
    compiled = CompiledStep.of(step)
    health = Health(step, policy, chain)
    chain.compiled(compiled.compilation)
    with contextlib.ExitStack() as opened:  # closed in the opposite order
        chain.progress("restore", 0)
        store = Checkpoints(checkpoints, step, seed, chain) if checkpoints else None
        if store:
            opened.callback(store.close)
        run = RunState(compiled, batches, health, store, seed, chain)
        opened.callback(run.close)
        stop = StopRequest()
        opened.callback(stop.close)
        interrupted = Loop(run, steps, checkpoints, policy.audit_every, chain).train(stop)
    return Fit(
        run.done,
        run.losses,
        run.step_times_s,
        run.data_wait_s,
        run.validation_loss,
        run.resumed_from,
        interrupted,
        compiled.compilation,
        run.state,
    )


@dataclass(frozen=True)
class Loop:
    """The loop of a run: an update, then what is due after it, in a fixed order.

    Attributes:
        run: what is trained.
        steps: updates in total.
        checkpoints: when to save; None for never.
        audit_every: steps between audits, with one before every checkpoint and at the end; 0
            for none.
        hooks: called in its course.
    """

    run: RunState
    steps: int
    checkpoints: Checkpointing | None
    audit_every: int
    hooks: Hooks

    def train(self, stop: StopRequest) -> bool:
        """Trains until all updates are done; returns whether it was interrupted before."""
        run, interrupted = self.run, False
        while run.done < self.steps and not interrupted:
            self.hooks.progress("step", run.done + 1)
            back = run.advance()
            if back is None:
                last = run.done == self.steps
                interrupted = stop.after(run.done) and not last
                back = self._after_update(last, interrupted)
            if back:
                self.hooks.progress("restore", run.done)
                run.go_back(back)
        if run.validation_loss is None and not interrupted:  # all steps were done before this call
            for evaluation in self.hooks.evaluations:
                self.hooks.progress("evaluate", run.done)
                run.evaluate(evaluation)
        self.hooks.progress("end", run.done)
        return interrupted

    def _after_update(self, last: bool, interrupted: bool) -> RollBack | None:
        """Does what is due; returns how far the run has to go back, None if it goes on."""
        for phase, act in self._due(last, interrupted):
            back = self.run.settle()  # so that the time of the update in flight counts as its own
            if back is None:
                self.hooks.progress(phase, self.run.done)
                back = act()
            if back:
                return back
        return self.run.settle() if last or interrupted else None

    def _due(
        self, last: bool, interrupted: bool
    ) -> Iterator[tuple[str, Callable[[], RollBack | None]]]:
        """Yields what is due after an update, in order: a phase, and what to do in it."""
        run, done, ends = self.run, self.run.done, last or interrupted
        for evaluation in self.hooks.evaluations:
            if (last or done % evaluation.every == 0) and not interrupted:
                yield "evaluate", functools.partial(run.evaluate, evaluation)
        for callback in self.hooks.callbacks:
            if done % callback.steps == 0:
                yield "callback", functools.partial(callback.do, done, run.state)
        tier = self.checkpoints.tier(done, ends=ends) if self.checkpoints else None
        if self.audit_every and (ends or tier or done % self.audit_every == 0):
            yield "audit", run.audit
        if tier:
            yield "checkpoint", functools.partial(run.save, tier, wait=ends)
