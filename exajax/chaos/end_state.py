"""Whether two runs have come to the same end: their last checkpoints, and their samples."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from exajax.train.checkpoint.folder import STATE, steps_in, verify
from exajax.train.sinks import history


@dataclass(frozen=True)
class Difference:
    """How the last checkpoints of two runs differ.

    Attributes:
        identical: whether every array has the same bits.
        arrays: names of those that differ.
        largest: largest difference of two elements, as a share of the largest element of the array.
    """

    identical: bool
    arrays: tuple[str, ...]
    largest: float


def differences(undisturbed: Path, disturbed: Path, step: int) -> Difference:
    """Compares the checkpoints of a step, which must be there, array by array.

    Args:
        undisturbed: one run folder.
        disturbed: the other one.
        step: of both checkpoints.

    Raises:
        ValueError, OSError: one of them cannot be read.
    """
    import numpy as np

    ours, theirs = _arrays(undisturbed, step), _arrays(disturbed, step)
    names, largest = [], 0.0
    for name in sorted({*ours, *theirs}):
        one, other = ours.get(name), theirs.get(name)
        if one is None or other is None or one.shape != other.shape or one.dtype != other.dtype:
            names.append(name)
            largest = float("inf")
        elif one.tobytes() != other.tobytes():
            names.append(name)
            change = np.max(np.abs(one.astype(np.float64) - other.astype(np.float64)))
            largest = max(largest, float(change / max(np.max(np.abs(one)), 1e-30)))
    return Difference(not names, tuple(names), largest)


def _arrays(run_dir: Path, step: int) -> Mapping[str, Any]:
    import jax
    import numpy as np
    import orbax.checkpoint as ocp
    from etils import epath

    path = epath.Path((run_dir / "checkpoints" / str(step) / STATE).absolute())
    handler = ocp.PyTreeCheckpointHandler()
    tree = handler.metadata(path)
    whole = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree.tree)
    state = handler.restore(path, args=ocp.args.PyTreeRestore(restore_args=whole))
    return {
        jax.tree_util.keystr(key): np.asarray(leaf)
        for key, leaf in jax.tree_util.tree_leaves_with_path(state)
    }


@dataclass(frozen=True)
class Samples:
    """What the samples of a run's surviving lineage lack.

    Attributes:
        missing: of the undisturbed run's, those that a step should have seen and has not.
        repeated: seen more often than in the undisturbed run.
        same: whether every step saw the same ones in the same order.
    """

    missing: int
    repeated: int
    same: bool


def samples(undisturbed: Path, disturbed: Path) -> Samples:
    """Compares the samples that two runs trained on, step by step."""
    import collections

    ours, theirs = (history.read(path / "samples.jsonl") for path in (undisturbed, disturbed))
    counts = [
        collections.Counter(i for r in records for i in r["ids"]) for records in (ours, theirs)
    ]
    return Samples(
        (counts[0] - counts[1]).total(),
        (counts[1] - counts[0]).total(),
        _steps(ours) == _steps(theirs),
    )


def _steps(records: list[dict[str, Any]]) -> list[tuple[int, list[int]]]:
    return [(record["step"], record["ids"]) for record in records]


def newest(run_dir: Path) -> int | None:
    """Returns the step of the newest checkpoint of a run, None if it has none."""
    return next(iter(steps_in(run_dir / "checkpoints")), None)


def half_checkpoints(run_dir: Path) -> list[str]:
    """Returns what is in the folder of checkpoints and is none, every byte read and compared."""
    folder = run_dir / "checkpoints"
    return [f"{found.step} {found.state}" for found in verify(folder) if found.state != "proven"]
