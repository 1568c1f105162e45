"""The best ways to lay a model over devices: every layout priced, and ranked under the memory."""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exajax.errors import InputError
from exajax.machine.cluster import Cluster
from exajax.models.dimensions import ModelConfig
from exajax.recipe.recipe import REMATS, Recipe
from exajax.simulate.formulas import engine
from exajax.simulate.formulas.prediction import capacity_bytes, fits_margin, ours
from exajax.simulate.formulas.search import candidates
from exajax.simulate.formulas.shared.layouts import Floats, Ints, Layouts, distinct
from exajax.simulate.formulas.shared.work import Work
from exajax.spmd.mesh import MeshSpec

AT_A_TIME = 1 << 16
"""Layouts that are priced at a time: few enough for their columns to stay in a core's caches."""

Progress = Callable[[int, int], None]
"""Called with how many layouts are priced, and of how many."""


@dataclass(frozen=True)
class PlannedStep:
    """A training step that is to be laid over devices.

    Attributes:
        model: its dimensions.
        global_batch: sequences of a step.
        seq: tokens of each.
        precision: what the passes compute in.
    """

    model: ModelConfig
    global_batch: int
    seq: int
    precision: str


@dataclass(frozen=True)
class PricedLayouts:
    """All layouts of a workload over so many devices of a machine, and what each would do.

    Attributes:
        work: what is trained.
        cluster: where.
        layouts: N of them.
        step_s: seconds of a step, shape [N].
        bytes: on a device at the peak, shape [N].
    """

    work: PlannedStep
    cluster: Cluster
    layouts: Layouts
    step_s: Floats
    bytes: Floats

    @property
    def fits(self) -> NDArray[np.bool_]:
        """Which of them fit a device's memory with the margin of the formulas to spare."""
        return self.bytes * (1 + fits_margin()) <= capacity_bytes(self.cluster)

    def ranked(self, rows: NDArray[Any]) -> Ints:
        """Rows of the fastest layout of each mesh among some layouts, the fastest mesh first.

        Of equally fast ones that with less in memory comes first.

        Args:
            rows: their numbers.
        """
        order = rows[np.lexsort((self.bytes[rows], self.step_s[rows]))]
        axes = ("pipe", "data", "fsdp", "expert", "context", "tensor")
        first, _ = distinct(*(getattr(self.layouts, axis)[order] for axis in axes))
        return order[np.sort(first)]

    def front(self) -> Ints:
        """Rows of the layouts that no other one beats in both time and memory, by memory."""
        order = np.lexsort((self.step_s, self.bytes))
        best = np.minimum.accumulate(self.step_s[order])
        better = np.concatenate([[True], best[1:] < best[:-1]])
        return order[better]

    def recipe(self, row: int) -> Recipe:
        """The recipe of a layout, by its row."""
        one = self.layouts

        def value(name: str) -> int:
            return int(getattr(one, name)[row])

        mesh = MeshSpec(
            pipe=value("pipe"),
            data=value("data"),
            fsdp=value("fsdp"),
            expert=value("expert"),
            context=value("context"),
            model=value("tensor"),
        )
        interleave = value("interleave")
        return Recipe.of(
            self.work.model,
            mesh,
            global_batch=self.work.global_batch,
            micro_batch=value("micro_batch"),
            seq=self.work.seq,
            precision=self.work.precision,
            remat=REMATS[value("remat")],
            zero=value("zero"),
            schedule="interleaved" if interleave > 1 else "1f1b",
            interleave=interleave,
            sequence_parallel=bool(one.sequence_parallel[row]),
        )


def search(
    work: PlannedStep, cluster: Cluster, devices: int, say: Progress = lambda priced, count: None
) -> PricedLayouts:
    """Prices every layout of a workload over devices.

    Args:
        work: what is trained.
        cluster: where.
        devices: of every layout.
        say: is called before and between the layouts that are priced at a time.

    Raises:
        InputError: no layout divides model, batch and sequence over so many devices, or too many
            do.
    """
    cluster = ours(cluster)
    flash = _probe(work).flash(cluster.chip.platform) and cluster.chip.attention is not None
    layouts = candidates(work.model, devices, work.global_batch, work.seq, flash=flash)
    if not len(layouts):
        raise InputError(
            "global_batch",
            f"no mesh of {devices} devices divides {work.global_batch} sequences of {work.seq} "
            f"tokens and the {work.model.layers} layers of {work.model.name}",
            f"give a multiple of {devices}, or other `devices`",
        )
    say(0, len(layouts))
    parts = [layouts.take(rows) for rows in _chunks(len(layouts))]
    priced: list[tuple[Floats, Floats]] = []
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        for one in threads.map(lambda part: _price(work, cluster, part), parts):
            priced.append(one)
            say(min(len(priced) * AT_A_TIME, len(layouts)), len(layouts))
    step_s, bytes_ = (np.concatenate(columns) for columns in zip(*priced, strict=True))
    return PricedLayouts(work, cluster, layouts, step_s, bytes_)


def _probe(work: PlannedStep) -> Recipe:
    """The workload on one device; raises what is impossible on any mesh at once."""
    return Recipe.of(
        work.model,
        MeshSpec(),
        global_batch=work.global_batch,
        seq=work.seq,
        precision=work.precision,
    )


def _chunks(count: int) -> Iterator[NDArray[np.intp]]:
    for begin in range(0, count, AT_A_TIME):
        yield np.arange(begin, min(begin + AT_A_TIME, count))


def _price(work: PlannedStep, cluster: Cluster, layouts: Layouts) -> tuple[Floats, Floats]:
    priced = Work(work.model, cluster, work.global_batch, work.seq, work.precision)
    times, memory = engine.step(priced, layouts)
    return times.step_s, memory.total


def smallest_that_fits(
    work: PlannedStep,
    cluster: Cluster,
    counts: Sequence[int],
    say: Progress = lambda priced, count: None,
) -> PricedLayouts | None:
    """The layouts over the first number of devices on which one of them fits, else None.

    Args:
        work: what is trained.
        cluster: where.
        counts: numbers of devices to try, in order.
        say: as of `search`.
    """
    for devices in counts:
        try:
            found = search(work, cluster, devices, say)
        except InputError:
            continue
        if found.fits.any():
            return found
    return None
