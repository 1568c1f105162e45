"""Both sides of a benchmark: the same recipe as a function that makes some steps.

A side takes the batches of its steps, starts them one after the other, waits once at the end, and
returns the losses.
"""

import os
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))  # a checkout needs no installation

import numpy as np

from exajax.recipe.recipe import Recipe

Batches = list[tuple[np.ndarray, np.ndarray]]
Side = Callable[[Batches], list[float]]


def batches(recipe: Recipe, first: int, steps: int) -> Batches:
    """Returns inputs and targets [B, T] of some steps: random tokens, the same on both sides."""
    shape = (recipe.global_batch, recipe.seq + 1)
    drawn = (
        np.random.default_rng(number).integers(0, recipe.model.vocab, shape, np.int32)
        for number in range(first, first + steps)
    )
    return [(tokens[:, :-1], tokens[:, 1:]) for tokens in drawn]


def exajax_side(recipe: Recipe) -> tuple[Side, Callable[[], Any]]:
    """Returns exajax's own train step on one device, and what copies its parameters to the host."""
    import jax

    from exajax.recipe import text_workload
    from exajax.spmd import compiler_options
    from exajax.spmd.step import TrainStep

    device = jax.devices()[0]
    workload = text_workload.workload(recipe, device.platform)
    step = TrainStep.of(workload, recipe.mesh.build([device]), precision=recipe.precision)
    lowered = step.update.lower(step.state, step.batch)
    update = compiler_options.compile(lowered, device.platform)
    state = step.init(np.uint32(recipe.seed))

    def advance(given: Batches) -> list[float]:
        nonlocal state
        losses = []
        for inputs, targets in given:
            placed = jax.device_put({"inputs": inputs, "targets": targets}, device)
            state, metrics = update(state, placed)
            losses.append(metrics["loss"])
        return [float(loss) for loss in losses]

    return advance, lambda: jax.device_get(state.params)


def torch_side(
    recipe: Recipe, device: str, *, compiled: bool, params: Mapping[str, Any] | None = None
) -> Side:
    """Returns the train step of the PyTorch twin, from exajax's parameters if they are given."""
    from torch_twin import Trainer

    trainer = Trainer(recipe, device, compiled=compiled, params=params)

    def advance(given: Batches) -> list[float]:
        return [loss.item() for loss in [trainer(*batch) for batch in given]]

    return advance


@dataclass(frozen=True)
class Turn:
    """Some steps of one side, one after the other.

    Attributes:
        side: whose they were.
        step_s: seconds per step.
        others: processors that other programs kept busy meanwhile, on average.
        losses: of every step.
    """

    side: str
    step_s: float
    others: float
    losses: list[float]

    @property
    def quiet(self) -> bool:
        """Whether other programs left this one the machine."""
        return self.others < QUIET


QUIET = 0.1
"""Processors that others may keep busy in a turn that counts."""


def take_turn(name: str, side: Side, given: Batches) -> Turn:
    """Times a side over some batches."""
    busy_s, ours_s, begin_s = _busy_s(), _ours_s(), time.perf_counter()
    losses = side(given)
    taken_s = time.perf_counter() - begin_s
    others_s = (_busy_s() - busy_s) - (_ours_s() - ours_s)
    return Turn(name, taken_s / len(given), max(0.0, others_s) / taken_s, losses)


def await_quiet(deadline_s: float) -> bool:
    """Waits until other programs leave the machine; returns whether they did in time."""
    while time.perf_counter() < deadline_s:
        busy_s, begin_s = _busy_s(), time.perf_counter()
        time.sleep(0.5)
        if (_busy_s() - busy_s) / (time.perf_counter() - begin_s) < QUIET:
            return True
        time.sleep(1.0)
    return False


def _busy_s() -> float:
    """Returns the seconds that all processors have worked since the machine began (proc(5))."""
    user, nice, system, _idle, _wait, *rest = map(int, Path("/proc/stat").read_text().split()[1:9])
    return (user + nice + system + sum(rest)) / os.sysconf("SC_CLK_TCK")


def _ours_s() -> float:
    used = os.times()
    return used.user + used.system
