"""Comparison of two runs: the arrays of their last checkpoints, and the samples they saw."""

import collections
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exajax.train.checkpoint.folder import STATE, steps_in, verify
from exajax.train.sinks import history

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class CheckpointDifference:
    """The difference between the last checkpoints of two runs.

    Attributes:
        identical: whether all arrays are equal, bit for bit.
        arrays: names of the arrays that differ.
        largest: largest difference of two elements, divided by the array's largest element;
            infinite where an array is missing or has another shape or type.
    """

    identical: bool
    arrays: tuple[str, ...]
    largest: float


def compare_checkpoints(undisturbed: Path, disturbed: Path, step: int) -> CheckpointDifference:
    """Compares the checkpoints of a step in two runs, array by array.

    Args:
        undisturbed: one run folder.
        disturbed: the other one.
        step: of both checkpoints, which must exist.

    Raises:
        ValueError, OSError: one of them cannot be read.
    """
    import numpy as np

    expected, actual = _arrays(undisturbed, step), _arrays(disturbed, step)
    names, largest = [], 0.0
    for name in sorted({*expected, *actual}):
        a, b = expected.get(name), actual.get(name)
        if a is None or b is None or a.shape != b.shape or a.dtype != b.dtype:
            names.append(name)
            largest = float("inf")
        elif a.tobytes() != b.tobytes():
            names.append(name)
            change = np.max(np.abs(a.astype(np.float64) - b.astype(np.float64)))
            largest = max(largest, float(change / max(np.max(np.abs(a)), 1e-30)))
    return CheckpointDifference(not names, tuple(names), largest)


def _arrays(run_dir: Path, step: int) -> "Mapping[str, np.ndarray]":
    """The arrays of a checkpoint by name, each restored as a whole on this host."""
    import jax
    import numpy as np

    from exajax.train.checkpoint import orbax_arrays

    state = orbax_arrays.read_as_saved(run_dir / "checkpoints" / str(step) / STATE)
    return {
        jax.tree_util.keystr(key): np.asarray(leaf)
        for key, leaf in jax.tree_util.tree_leaves_with_path(state)
    }


@dataclass(frozen=True)
class SampleDifference:
    """The difference between the samples of two runs, counted on their surviving lineages.

    Attributes:
        missing: samples that the undisturbed run trained on and the other one did not.
        repeated: samples that the other run trained on more often than the undisturbed one.
        same: whether every step saw the same samples in the same order.
    """

    missing: int
    repeated: int
    same: bool


def compare_samples(undisturbed: Path, disturbed: Path) -> SampleDifference:
    """Compares the samples that two runs trained on, step by step."""
    expected, actual = (history.read(path / "samples.jsonl") for path in (undisturbed, disturbed))
    expected_counts, actual_counts = (
        collections.Counter(i for record in records for i in record["ids"])
        for records in (expected, actual)
    )
    return SampleDifference(
        (expected_counts - actual_counts).total(),
        (actual_counts - expected_counts).total(),
        _steps(expected) == _steps(actual),
    )


def _steps(records: list[dict[str, Any]]) -> list[tuple[int, list[int]]]:
    return [(record["step"], record["ids"]) for record in records]


def newest_step(run_dir: Path) -> int | None:
    """The step of the newest checkpoint of a run, None if it has none."""
    return next(iter(steps_in(run_dir / "checkpoints")), None)


def bad_checkpoints(run_dir: Path) -> list[str]:
    """Step and state of unfinished and damaged checkpoints; every byte is read and verified."""
    folder = run_dir / "checkpoints"
    return [f"{entry.step} {entry.state}" for entry in verify(folder) if entry.state != "proven"]
