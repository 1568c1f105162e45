"""A run while it goes on: its state, the step in flight, and what is measured of it."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from exajax.job import compilation_cache
from exajax.spmd import compiler_options, weighted
from exajax.spmd.step import TrainState, TrainStep
from exajax.spmd.weighted import Loss
from exajax.train import device_memory, profiling
from exajax.train.checkpoint.checkpoints import Checkpoints
from exajax.train.data.batches import HostBatch
from exajax.train.data.placement import local_rows, place
from exajax.train.data.skipping import Skipping
from exajax.train.health.bad_steps import RollBack
from exajax.train.health.watch import Health
from exajax.train.sinks.records import History, Logger

Measure = Callable[[Any, Mapping[str, jax.Array]], Loss]
"""Given parameters and a batch, returns a mean over its samples, or `Weighted`: the `evaluate` of a
step."""


class Running:
    """The state of a loop: one step is always in flight while the last one is being recorded."""

    state: TrainState
    health: Health

    def __init__(
        self,
        step: TrainStep,
        peak_flops: float | None,
        measures: Mapping[str, Measure],
        batches: Skipping,
    ) -> None:
        self.step, self.peak_flops, self.measures = step, peak_flops, measures
        self.batches = batches
        self.sinks: Sequence[Logger] = ()
        self.losses: list[float] = []
        self.step_times_s: list[float] = []
        self.data_wait_s: list[float] = []
        self.rows = local_rows(step.batch)
        self.validation_loss: float | None = None
        platform = step.mesh.devices.flat[0].platform
        lowered = step.update.lower(step.state, step.batch)
        self._update, self.compilation = compilation_cache.timed_compile(
            lambda: compiler_options.compile(lowered, platform)
        )
        device_memory.check_fits(self._update, jax.local_devices()[0])
        self.store: Checkpoints | None = None
        self.resumed_from: int | None = None
        self.done = 0
        self._placed: dict[str, jax.Array] = {}
        self._dispatch_s: list[float] = []
        self._in_flight: tuple[int, dict[str, jax.Array]] | None = None
        self._last_end_s: float | None = None

    def begin(self, initial: Callable[[], TrainState], about: Mapping[str, Any]) -> None:
        """Makes the first state, or restores the newest checkpoint that is whole."""
        restored = self.store.restore(about) if self.store else None
        if restored:
            self.state, self.done = restored.state, restored.step
            self.resumed_from = restored.step
            self._recall(restored.about)
        else:
            self.state = initial()

    def newest(self) -> int | None:
        """Returns the step of the newest checkpoint, once nothing is being saved."""
        if self.store is None:
            return None
        self.store.settle()
        return self.store.latest

    def go_back(
        self, reason: RollBack, initial: Callable[[], TrainState], about: Mapping[str, Any]
    ) -> None:
        """Restores the newest checkpoint, or where there is none begins again; skips batches."""
        self._in_flight = self._last_end_s = None
        del self.state  # a device may not have room for two
        began = self.resumed_from or 0
        if self.store and self.newest() is not None:
            restored = self.store.restore(about)
            assert restored
            self.state, self.done = restored.state, restored.step
            self._recall(restored.about)
        else:
            self.state, self.done = initial(), 0
            self._recall({})
        steps = range(max(self.done, reason.step - reason.batches), reason.step)
        self.batches.skip([self.batches.number(step) for step in steps])
        del self.losses[self.done - began :], self.data_wait_s[self.done - began :]
        for sink in self.sinks:
            if isinstance(sink, History):
                sink.rewind(self.done)
        self._dispatch_s.clear()
        if reason.batches:
            self._log(self.done, {"bad_steps": self.health.steps.count})

    def _recall(self, about: Mapping[str, Any]) -> None:
        """Takes up what a checkpoint knows of the steps before it."""
        known = about.get("bad_steps", {})
        self.health.steps.restore(known)
        self.batches.skip(known.get("skipped", ()))

    def advance(self, feed: Iterator[HostBatch]) -> None:
        """Starts the next update, its batch placed while the one before it is still computed.

        Then records the one before it.
        """
        started_s = time.perf_counter()
        batch = next(feed)
        self.data_wait_s.append(time.perf_counter() - started_s)
        started_s = time.thread_time()  # of this thread's work: it may have to wait for the devices
        self._placed = place(batch, self.rows, self.step.batch)
        self.state, metrics = self._update(self.state, self._placed)
        self._dispatch_s.append(time.thread_time() - started_s)
        self._record()
        self.done += 1
        self._in_flight = self.done, metrics

    def trace(self, feed: Iterator[HostBatch], folder: Path | None) -> None:
        """Makes one update while JAX's profiler watches, and nothing else is in flight."""
        self.settle()
        with profiling.watching(folder):
            self.advance(feed)
            self.settle()

    def settle(self) -> None:
        """Waits for the update in flight; what comes next is not a part of a step's time."""
        self._record()
        self._last_end_s = None

    def evaluate(self, batches: Iterable[HostBatch]) -> None:
        """Records the mean loss of some batches, and what else they are measured by."""
        self.settle()
        every_row = np.arange(self.step.workload.samples)
        found: dict[str, list[Loss]] = {name: [] for name in self.measures}
        for batch in batches:
            placed = place(batch, every_row, self.step.batch)
            for name, measure in self.measures.items():
                found[name].append(measure(self.state.params, placed))
        means = {
            f"validation_{name}": weighted.mean_of_batches(values) for name, values in found.items()
        }
        self.validation_loss = means["validation_loss"]
        self._log(self.done, means)

    def save(self, about: Mapping[str, Any], *, tier: str = "shared", wait: bool = False) -> None:
        """Starts to save the state; waits for its end if it is the last."""
        self.settle()
        if self.store:
            known = {"bad_steps": self.health.steps.to_json(self.batches.skipped)}
            self.store.save(self.done, self.state, {**about, **known}, tier=tier, wait=wait)

    def audit(self) -> None:
        """Looks at the state and at the hosts, by the steps since the last look."""
        self.settle()
        steps = len(self._dispatch_s)
        times_s = (
            float(np.median(self.step_times_s[-steps:] or [0.0])),
            float(np.median(self.data_wait_s[-steps:])),
            float(np.median(self._dispatch_s)),
        )
        self._dispatch_s.clear()
        self._log(self.done, self.health.audit(self.done, self.state, self._placed, times_s))

    def _record(self) -> None:
        if self._in_flight is None:
            return
        (number, metrics), self._in_flight = self._in_flight, None
        values = {name: float(value) for name, value in metrics.items()}
        values["data_wait_s"] = self.data_wait_s[len(self.losses)]
        measured = values["loss"], values["grad_norm"]
        if self.health.judge(number, *measured, self.state, self._placed):
            values["bad_steps"] = self.health.steps.count
        now_s = time.perf_counter()
        self.losses.append(values["loss"])
        if self._last_end_s is not None:
            values |= self._rates(now_s - self._last_end_s)
            self.step_times_s.append(values["step_time_s"])
        self._last_end_s = now_s
        self._log(number, values)

    def _rates(self, step_time_s: float) -> dict[str, float]:
        workload = self.step.workload
        rates = {"step_time_s": step_time_s, "samples_per_s": workload.samples / step_time_s}
        if workload.tokens_per_sample:
            rates["tokens_per_s"] = rates["samples_per_s"] * workload.tokens_per_sample
        if workload.model_flops and self.peak_flops:
            peak = self.peak_flops * self.step.mesh.size
            rates["mfu"] = workload.model_flops / step_time_s / peak
        return rates

    def _log(self, number: int, values: Mapping[str, float]) -> None:
        for sink in self.sinks:
            sink.log(number, values)
