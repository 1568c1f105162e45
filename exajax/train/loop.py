"""The training loop: resume, step, evaluate, save, stop."""

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jax
import numpy as np

from exajax.errors import InputError
from exajax.job.compilation_cache import Compilation
from exajax.job.events import EventLog
from exajax.spmd.idle_axes import warn_of_idle_axes
from exajax.spmd.step import TrainState, TrainStep
from exajax.train.checkpoint.checkpoints import Checkpoints
from exajax.train.data.batches import Batches, HostBatch, WholeBatches
from exajax.train.data.skipping import Skipping
from exajax.train.health import bad_steps
from exajax.train.health.bad_steps import Policy, RollBack
from exajax.train.health.watch import Health
from exajax.train.hooks import Every
from exajax.train.running import Measure, Running
from exajax.train.sinks.records import Logger
from exajax.train.stopping import StopRequest

Progress = Callable[[str, int], None]
"""Told what the loop turns to: `progress(phase, step)`, one of `PHASES`, behind so many updates."""

PHASES = (
    "start",
    "compile",
    "restore",
    "step",
    "evaluate",
    "callback",
    "audit",
    "checkpoint",
    "end",
)
"""What a loop can be at. `step` is told before every update, with its number, counted from 1."""


@dataclass(frozen=True)
class Profile:
    """One step to be traced by JAX's profiler. Its time, and that of the next, is not measured.

    Attributes:
        folder: where the trace goes; None lets another process trace, at the same step.
        after: steps of this call that go before it.
    """

    folder: Path | None
    after: int = 5


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
    held_out: Callable[[], Iterable[HostBatch]] | None = None,
    evaluate_every: int = 50,
    checkpoints: Path | None = None,
    save_every: int = 50,
    keep: int | None = 2,
    about: Mapping[str, Any] | None = None,
    loggers: Callable[[int], Sequence[Logger]] = lambda resumed_from: (),
    peak_flops: float | None = None,
    before_writing: Callable[[Compilation], None] = lambda compilation: None,
    initial: Callable[[], TrainState] | None = None,
    measures: Mapping[str, Measure] = MappingProxyType({}),
    callbacks: Sequence[Every] = (),
    profile: Profile | None = None,
    progress: Progress = lambda phase, step: None,
    policy: Policy = bad_steps.DEFAULT,
    host: int | None = None,
    events: EventLog | None = None,
    before_commit: Callable[[int], None] = lambda step: None,
    local: Path | None = None,
    local_every: int = 10,
) -> Fit:
    """Trains until `steps` updates are done, going on from the newest checkpoint if there is one.

    Args:
        step: the workload on its mesh.
        batches: gives each process its rows of every step's batch; or a function from a step's
            number to its whole batch, the same on every process.
        steps: updates in total, those before a resume included.
        seed: of the first parameters.
        held_out: batches to evaluate on, the same on every process.
        evaluate_every: steps between evaluations; the last step is always evaluated.
        checkpoints: folder for checkpoints; None saves nothing.
        save_every: steps between checkpoints; the last step is always saved.
        keep: how many of the newest checkpoints stay; None keeps all.
        about: facts to save with every checkpoint. Those under `data` say which samples the steps
            see, and must be those of the checkpoint that it goes on from.
        loggers: given the step it goes on from (0 if it begins), returns where metrics go. They
            get `loss`, `grad_norm`, `data_wait_s`, `step_time_s`, `samples_per_s`, and where they
            are known `learning_rate`, `tokens_per_s`, `mfu`, `validation_loss` and a
            `validation_...` of every measure.
        peak_flops: FLOP/s of one device, for the MFU.
        before_writing: told how the step was compiled once that is done and it is known to fit,
            before anything is written.
        initial: makes the state that training begins with; None draws its parameters from `seed`.
        measures: of held-out batches, by name; `loss` stands in for the step's own.
        callbacks: what else to do, and how often; as often on every process.
        profile: a step to trace, the same on every process.
        progress: told, on every process, before the loop turns to something else.
        policy: what to do about bad steps, and how often to look for corruption and slow hosts.
        host: number of this process's host, by which others know it; None is JAX's.
        events: told what becomes of checkpoints, and of the run's health.
        before_commit: called with the step of a checkpoint, in the thread that saves it, before it
            counts.
        local: folder on a disk of each process's host for checkpoints of its own, which are quick
            and go on on the same mesh only; None saves none.
        local_every: steps between them.

    Raises:
        InputError: a step does not fit a device's memory, or a checkpoint is there that is not
            of this workload or of this data, or none that is whole.
        NotSavedError: the last checkpoint could not be saved.
        RunFailed: a step was bad, or a host corrupt, and there is nothing to be done about it.
    """
    if policy.on_nan == "skip" and not step.layout.get("skip_bad"):
        raise InputError("on_nan", "the step does not skip", "build it with skip_bad=True")
    if not isinstance(batches, Skipping):
        batches = Skipping(batches if isinstance(batches, Batches) else WholeBatches(batches))
    progress("compile", 0)
    warn_of_idle_axes(step)
    run = Running(step, peak_flops, {"loss": step.evaluate} | dict(measures), batches)
    run.health = Health(
        step, policy, jax.process_index() if host is None else host, events, run.newest
    )
    before_writing(run.compilation)
    stop: StopRequest | None = None
    sinks: Sequence[Logger] = ()
    try:
        progress("restore", 0)
        start = initial or functools.partial(step.init, np.uint32(seed))
        if checkpoints:
            run.store = Checkpoints(
                checkpoints,
                step,
                keep=keep,
                seed=seed,
                events=events,
                before_commit=before_commit,
                local=local,
            )
        run.begin(start, about or {})
        feed = batches.iterate(run.done, run.rows)
        sinks = loggers(run.done)
        run.sinks = sinks
        stop = StopRequest()

        def turn_to(phase: str) -> None:
            run.settle()  # the step in flight is still a part of its step
            progress(phase, run.done)

        interrupted = False
        while run.done < steps and not interrupted:
            try:
                progress("step", run.done + 1)
                if profile and len(run.data_wait_s) == profile.after:
                    run.trace(feed, profile.folder)
                else:
                    run.advance(feed)
                last = run.done == steps
                interrupted = stop.after(run.done) and not last
                if held_out and (last or run.done % evaluate_every == 0) and not interrupted:
                    turn_to("evaluate")
                    run.evaluate(held_out())
                for callback in callbacks:
                    if run.done % callback.steps == 0:
                        turn_to("callback")
                        callback.do(run.done, run.state)
                saves = last or interrupted or run.done % save_every == 0
                tier = "shared" if saves else "local"
                saves = saves or (local is not None and run.done % local_every == 0)
                if policy.audit_every and (saves or run.done % policy.audit_every == 0):
                    turn_to("audit")
                    run.audit()
                if saves:
                    turn_to("checkpoint")
                    run.save(about or {}, tier=tier, wait=last or interrupted)
            except RollBack as reason:
                progress("restore", run.done)
                run.go_back(reason, start, about or {})
                feed = batches.iterate(run.done, run.rows)
        if held_out and run.validation_loss is None and not interrupted:
            turn_to("evaluate")
            run.evaluate(held_out())
        turn_to("end")
    finally:
        if stop:
            stop.close()
        for sink in sinks:
            sink.close()
        if run.store:
            run.store.close()
    return Fit(
        run.done,
        run.losses,
        run.step_times_s,
        run.data_wait_s,
        run.validation_loss,
        run.resumed_from,
        interrupted,
        run.compilation,
        run.state,
    )
