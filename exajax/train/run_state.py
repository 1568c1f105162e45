"""The state of a run: parameters, the update in flight, and what was measured so far."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from exajax.job import compilation_cache
from exajax.job.compilation_cache import Compilation
from exajax.spmd import compiler_options, weighted
from exajax.spmd.step import TrainState, TrainStep
from exajax.spmd.weighted import Loss
from exajax.train import device_memory
from exajax.train.checkpoint.checkpoints import Checkpoints
from exajax.train.data.placement import local_rows, place
from exajax.train.data.skipping import Skipping
from exajax.train.health.bad_steps import RollBack
from exajax.train.health.watch import Health
from exajax.train.hooks import Evaluation, Hooks
from exajax.train.rates import rates
from exajax.train.sinks.records import History


@dataclass(frozen=True)
class CompiledStep:
    """A step compiled for its mesh.

    Attributes:
        step: what was compiled.
        update: `update(state, batch)`, compiled.
        compilation: how it was made.
    """

    step: TrainStep
    update: jax.stages.Compiled
    compilation: Compilation

    @classmethod
    def of(cls, step: TrainStep) -> "CompiledStep":
        """Compiles a step.

        Raises:
            InputError: it does not fit a device's memory.
        """
        platform = step.mesh.devices.flat[0].platform
        lowered = step.update.lower(step.state, step.batch)
        update, compilation = compilation_cache.timed_compile(
            lambda: compiler_options.compile(lowered, platform)
        )
        device_memory.check_fits(update, jax.local_devices()[0])
        return cls(step, update, compilation)


class RunState:
    """The state of a run, and what changes it.

    One update is in flight while the one before it is recorded.

    Args:
        compiled: the compiled step.
        batches: what to train on.
        health: judges steps and devices.
        checkpoints: to go on from, and to save to; None saves nothing.
        seed: of the first parameters, where there is no checkpoint.
        hooks: called in its course.

    Raises:
        InputError: the checkpoint is of another workload or other data, or all checkpoints are
            damaged.
    """

    def __init__(
        self,
        compiled: CompiledStep,
        batches: Skipping,
        health: Health,
        checkpoints: Checkpoints | None,
        seed: int,
        hooks: Hooks,
    ) -> None:
        self._step, self._update = compiled.step, compiled.update
        self._batches, self._health, self._hooks = batches, health, hooks
        self._checkpoints, self._seed = checkpoints, seed
        self._rows = local_rows(compiled.step.batch)
        self.losses: list[float] = []
        self.step_times_s: list[float] = []
        self.data_wait_s: list[float] = []
        self.validation_loss: float | None = None
        self._placed: dict[str, jax.Array] = {}
        self._dispatch_s: list[float] = []
        self._in_flight: tuple[int, dict[str, jax.Array]] | None = None
        self._last_end_s: float | None = None
        self.state, self.done, self.resumed_from = self._load()
        self._feed = batches.iterate(self.done, self._rows)
        self._loggers = hooks.loggers(self.done)

    def _load(self) -> tuple[TrainState, int, int | None]:
        """Returns the state to go on from, its updates, and the step of its checkpoint if any."""
        restored = self._checkpoints.restore() if self._checkpoints else None
        facts: Mapping[str, Any] = restored.facts if restored else {}
        bad_steps = facts.get("bad_steps", {})
        self._health.steps.restore(bad_steps)
        self._batches.skip(bad_steps.get("skipped", ()))
        if restored:
            return restored.state, restored.step, restored.step
        return self._step.init(np.uint32(self._seed)), 0, None

    def go_back(self, back: RollBack) -> None:
        """Restores the newest checkpoint, or begins again where there is none; skips batches."""
        self._in_flight = self._last_end_s = None
        del self.state  # a device may not have room for two
        began = self.resumed_from or 0
        self.newest()  # what is being saved may be it
        self.state, self.done, _ = self._load()
        steps = range(max(self.done, back.step - back.batches), back.step)
        self._batches.skip([self._batches.number(step) for step in steps])
        self._feed = self._batches.iterate(self.done, self._rows)
        del self.losses[self.done - began :], self.data_wait_s[self.done - began :]
        for logger in self._loggers:
            if isinstance(logger, History):
                logger.rewind(self.done)
        self._dispatch_s.clear()
        if back.batches:
            self._log(self.done, {"bad_steps": self._health.steps.count})

    def newest(self) -> int | None:
        """Returns the step of the newest checkpoint, once nothing is being saved."""
        if self._checkpoints is None:
            return None
        self._checkpoints.settle()
        return self._checkpoints.latest

    def advance(self) -> RollBack | None:
        """Starts the next update, and records the one before it.

        Returns:
            How far the run has to go back, None if it goes on.
        """
        context = self._hooks.around(len(self.data_wait_s))
        if context is None:
            return self._advance()
        back = self.settle()
        if back is None:
            with context:
                back = self._advance() or self.settle()
        return back

    def _advance(self) -> RollBack | None:
        started_s = time.perf_counter()
        batch = next(self._feed)
        self.data_wait_s.append(time.perf_counter() - started_s)
        started_s = time.thread_time()  # of this thread's work: it may have to wait for the devices
        self._placed = place(batch, self._rows, self._step.batch)  # while the last one is computed
        self.state, metrics = self._update(self.state, self._placed)
        self._dispatch_s.append(time.thread_time() - started_s)
        back = self._record()
        if back is None:
            self.done += 1
            self._in_flight = self.done, metrics
        return back

    def settle(self) -> RollBack | None:
        """Waits for the update in flight; what comes next is not a part of a step's time.

        Returns:
            How far the run has to go back, None if it goes on.
        """
        back = self._record()
        self._last_end_s = None
        return back

    def evaluate(self, evaluation: Evaluation) -> None:
        """Logs the mean loss of held-out batches, and their other measures."""
        every_row = np.arange(self._step.workload.samples)
        measures = {"loss": self._step.evaluate} | dict(evaluation.measures)
        losses: dict[str, list[Loss]] = {name: [] for name in measures}
        for batch in evaluation.data():
            placed = place(batch, every_row, self._step.batch)
            for name, measure in measures.items():
                losses[name].append(measure(self.state.params, placed))
        means = {
            f"validation_{name}": weighted.mean_of_batches(values)
            for name, values in losses.items()
        }
        self.validation_loss = means["validation_loss"]
        self._log(self.done, means)

    def save(self, tier: str, *, wait: bool) -> None:
        """Starts to save the state; waits for its end if it is the last."""
        assert self._checkpoints
        facts = {"bad_steps": self._health.steps.to_json(self._batches.skipped)}
        self._checkpoints.save(self.done, self.state, facts, tier=tier, wait=wait)

    def audit(self) -> RollBack | None:
        """Looks at the state and at the hosts, by the steps since the last look.

        Returns:
            How far the run has to go back, None if it goes on.
        """
        steps = len(self._dispatch_s)
        times_s = (
            float(np.median(self.step_times_s[-steps:] or [0.0])),
            float(np.median(self.data_wait_s[-steps:])),
            float(np.median(self._dispatch_s)),
        )
        self._dispatch_s.clear()
        verdict = self._health.audit(self.done, self.state, self._placed, times_s, self.newest)
        if verdict.back is None:
            self._log(self.done, verdict.metrics)
        return verdict.back

    def close(self) -> None:
        """Writes out what the loggers have pending."""
        for logger in self._loggers:
            logger.close()

    def _record(self) -> RollBack | None:
        """Judges and logs the update in flight, once it has ended."""
        if self._in_flight is None:
            return None
        (number, metrics), self._in_flight = self._in_flight, None
        values = {name: float(value) for name, value in metrics.items()}
        values["data_wait_s"] = self.data_wait_s[len(self.losses)]
        verdict = self._health.judge(number, values, self.state, self._placed, self.newest)
        if verdict.back:
            return verdict.back
        values |= verdict.metrics
        now_s = time.perf_counter()
        self.losses.append(values["loss"])
        if self._last_end_s is not None:
            step_time_s = now_s - self._last_end_s
            values |= rates(self._step.workload, step_time_s)
            values |= self._hooks.rates(self._step, step_time_s)
            self.step_times_s.append(step_time_s)
        self._last_end_s = now_s
        self._log(number, values)
        return None

    def _log(self, number: int, values: Mapping[str, float]) -> None:
        for logger in self._loggers:
            logger.log(number, values)
