"""Arrays in Orbax's form: every process writes its part, and any mesh reads them.

Orbax's own `Checkpointer` names and commits folders itself. Here the folder is exajax's (checksums
first, then one rename), so Orbax's handler of a tree of arrays is driven below it. That is public,
and its use alone is not promised. Relied on, in orbax-checkpoint 0.12.8, the oldest that exajax
takes and the newest there is:

- `PyTreeCheckpointHandler.async_save` is a coroutine that returns, once the arrays are on the host,
  futures with `result(timeout)`; `finalize` on one process merges what all have written.
- What process N writes lies under a name that ends in `process_N`.
- A failed write is logged by `absl` or `asyncio`, dozens of times, and TensorStore's writes that
  end later raise "Event loop is closed" where nobody catches it.

A release that changes the handler fails at the first save, which says so, and the run goes on. One
that names files otherwise makes the first process compute all checksums: slower, and right.
`tests/train/checkpoint/test_orbax_arrays.py` holds each.
"""

import asyncio
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from exajax.errors import disk_errno

FILE_BYTES = 256 * 2**20
"""Size of a data file: several threads sum several files at a time."""

OWNED = "process_"


class _Reported(logging.Filter):
    """Keeps out of the log what Orbax and its threads say of a failed save: the save reports it."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Returns whether a record is of something else than the disk."""
        error = record.exc_info[1] if record.exc_info else None
        return error is None or disk_errno(error) is None


def quiet() -> None:
    """Leaves it to the save to say why it failed, which Orbax's threads say dozens of times."""
    if getattr(sys.unraisablehook, "__module__", "") == __name__:
        return
    for name in ("absl", "asyncio"):
        logging.getLogger(name).addFilter(_Reported())
    before = sys.unraisablehook

    def hook(unraisable: "sys.UnraisableHookArgs") -> None:
        # TensorStore's writes end after the loop that waited for the first one to fail.
        if str(unraisable.exc_value) != "Event loop is closed":
            before(unraisable)

    sys.unraisablehook = hook


class Writing:
    """Arrays on their way to a folder, from the moment that the host has them.

    Args:
        folder: where they go; it need not be there.
        tree: of arrays; they may be written over when this returns.
    """

    def __init__(self, folder: Path, tree: Any) -> None:
        quiet()
        self._folder, self._handler = epath.Path(folder), _handler()
        args = ocp.args.PyTreeSave(tree, ocdbt_target_data_file_size=FILE_BYTES)
        self._writes = asyncio.run(self._handler.async_save(self._folder, args=args)) or []

    def wait(self, limit_s: float) -> None:
        """Waits until this process has written; raises what a write has raised."""
        for write in self._writes:
            write.result(timeout=limit_s)

    def finish(self) -> None:
        """Makes one of what all processes have written; on one process, once all have."""
        self._handler.finalize(self._folder)


def owner(file: str) -> int | None:
    """Returns the process that alone writes a file; None if it is of all of them."""
    for part in Path(file).parts:
        number = part.rpartition(OWNED)[2]
        if OWNED in part and number.isdecimal():
            return int(number)
    return None


def read(folder: Path, described: Any, *, partial: bool = False) -> Any:
    """Returns arrays in the types and shardings of `described`.

    Args:
        folder: of the arrays.
        described: a tree of shapes, types and shardings.
        partial: whether the folder may hold more than that.

    Raises:
        ValueError, KeyError, TypeError, OSError: they are not there, or damaged.
    """
    wanted = ocp.args.PyTreeRestore(
        item=described,
        restore_args=ocp.checkpoint_utils.construct_restore_args(described),
        partial_restore=partial,
    )
    return _restored(folder, lambda: wanted)


def read_as_saved(folder: Path) -> Any:
    """Returns all arrays of a folder in the memory of this host, as they were saved.

    Raises:
        ValueError, KeyError, TypeError, OSError: they are not there, or damaged.
    """

    def wanted() -> Any:
        tree = _handler().metadata(_absolute(folder)).tree
        whole = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
        return ocp.args.PyTreeRestore(restore_args=whole)

    return _restored(folder, wanted)


def _restored(folder: Path, wanted: Callable[[], Any]) -> Any:
    try:
        return _handler().restore(_absolute(folder), args=wanted())
    except (jax.errors.JaxRuntimeError, MemoryError, OSError):  # of this machine, not of the files
        raise
    except Exception as error:  # Orbax raises `Exception` itself, its JSON a `RecursionError`
        raise ValueError(f"{type(error).__name__}: {error}") from error


def _absolute(folder: Path) -> epath.Path:
    return epath.Path(folder.absolute())


def _handler() -> ocp.PyTreeCheckpointHandler:
    """Returns what writes and reads the arrays: OCDBT without compression.

    zstd, Orbax's default, saves 8% of the bytes of random fp32 and takes four times as long
    (measured: 1 GiB in 3.9 s against 1.0 s, on 2 cores).
    """
    return ocp.PyTreeCheckpointHandler(use_compression=False)
