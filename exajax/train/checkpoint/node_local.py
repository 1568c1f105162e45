"""Checkpoints on the local disk of every host: fast to write and read, for the same mesh only.

`DIR/RUN/STEP/host-H` holds the shards of the devices of process H, each distinct one once: raw
bytes, one shard after the other, and an index of their places. It can be restored only on a mesh
that gives every process the same shards; otherwise the shared folder is used.
"""

import contextlib
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from exajax.files.reading import Malformed, read_bytes
from exajax.files.schema import decode_record
from exajax.spmd.step import TrainState, TrainStep
from exajax.train.checkpoint import checksums
from exajax.train.checkpoint.folder import SAVING, steps_in
from exajax.train.checkpoint.manifest import Count, Manifest, name_of

PARTS = "parts.bin"
INDEX = "index.json"
KEEP = 2


class LocalPart:
    """This process's part of a checkpoint on local disks.

    Args:
        folder: folder of the run's local checkpoints.
        step: number of updates that made the state.
        notes: returns further files of the checkpoint by name, as JSON.
    """

    def __init__(self, folder: Path, step: int, notes: Callable[[], Mapping[str, Any]]) -> None:
        self._folder, self._step, self._notes = folder, step, notes
        self._final = host_folder(folder, step)
        self._saving = self._final.with_name(f"{self._final.name}{SAVING}")

    def copy(self, state: TrainState) -> None:
        """Copies the distinct shards of this process's devices to the host."""
        leaves = jax.tree_util.tree_leaves_with_path(state)
        shards = {name_of(path): _distinct_shards(leaf) for path, leaf in leaves}
        for by_place in shards.values():
            for shard in by_place.values():
                shard.copy_to_host_async()
        self._shards = {
            name: {place: np.asarray(shard) for place, shard in by_place.items()}
            for name, by_place in shards.items()
        }

    def write(self) -> int:
        """Writes shards, index and checksums; returns their bytes."""
        shutil.rmtree(self._saving, ignore_errors=True)
        self._saving.mkdir(parents=True)
        index: dict[str, dict[str, int]] = {}
        with (self._saving / PARTS).open("wb") as file:
            for name, by_place in self._shards.items():
                index[name] = {}
                for place, shard in by_place.items():
                    index[name][place] = file.tell()
                    file.write(np.ascontiguousarray(shard).reshape(-1).view(np.uint8).data)
        del self._shards
        for name, content in {**self._notes(), INDEX: index}.items():
            checksums.write_json(self._saving / name, content)
        sums = checksums.sums_of(self._saving, checksums.files_in(self._saving))
        checksums.write(self._saving, sums)
        shutil.rmtree(self._final, ignore_errors=True)
        self._saving.rename(self._final)
        checksums.sync_folder(self._final.parent)
        return sum(size for size, _ in sums.values())

    def commit(self, reports: list[int]) -> int:
        """The bytes of all hosts; nothing else is to be done once all have written."""
        return sum(reports)

    def clean(self, *, failed: bool) -> None:
        """Removes older checkpoints, or this one if a host failed to write its part."""
        if failed:
            shutil.rmtree(self._saving, ignore_errors=True)
            shutil.rmtree(self._final, ignore_errors=True)
            return
        complete = [step for step in steps_in(self._folder) if has(self._folder, step)]
        for step in complete[KEEP:]:
            shutil.rmtree(host_folder(self._folder, step), ignore_errors=True)
            _remove_if_empty(self._folder / str(step))


def host_folder(folder: Path, step: int) -> Path:
    """The folder of this process's part of a local checkpoint."""
    return folder / str(step) / f"host-{jax.process_index()}"


def has(folder: Path, step: int) -> bool:
    """Whether this process has completely written its part of a local checkpoint."""
    return (host_folder(folder, step) / checksums.NAME).exists()


def sweep(folder: Path) -> None:
    """Removes unfinished saves of this process."""
    for step in steps_in(folder):
        unfinished = host_folder(folder, step)
        shutil.rmtree(unfinished.with_name(f"{unfinished.name}{SAVING}"), ignore_errors=True)
        _remove_if_empty(folder / str(step))


def remove_behind(folder: Path, done: int) -> None:
    """Removes this process's parts of checkpoints newer than the step that a run resumes from."""
    for step in steps_in(folder):
        if step > done:
            shutil.rmtree(host_folder(folder, step), ignore_errors=True)
            _remove_if_empty(folder / str(step))


def fitting(folder: Path, step: TrainStep) -> list[int]:
    """The steps of local checkpoints that have all shards that this process's devices need."""
    needed = {
        name: {_place(index, shape) for index in indices}
        for name, shape, indices in _needed(step.state)
    }

    def fits(number: int) -> bool:
        try:
            index = _index(host_folder(folder, number))
            return all(places <= set(index[name]) for name, places in needed.items())
        except (Malformed, KeyError):
            return False

    return [number for number in steps_in(folder) if has(folder, number) and fits(number)]


def read_state(checkpoint: Path, step: TrainStep, saved: Manifest) -> TrainState:
    """The state in a local checkpoint that has all shards of a step's state.

    Raises:
        ValueError, KeyError, TypeError, OSError: it cannot be read.
    """
    index = _index(checkpoint)
    content = np.memmap(checkpoint / PARTS, np.uint8, "r")

    def read_array(path: tuple[object, ...], leaf: jax.ShapeDtypeStruct) -> jax.Array:
        places = index[name_of(path)]

        def shard(at: Any) -> np.ndarray:
            shape = tuple(len(range(*s.indices(n))) for s, n in zip(at, leaf.shape, strict=True))
            begin = places[_place(at, leaf.shape)]
            size = int(np.prod(shape, dtype=np.int64)) * leaf.dtype.itemsize
            return np.array(content[begin : begin + size]).view(leaf.dtype).reshape(shape)

        return jax.make_array_from_callback(leaf.shape, leaf.sharding, shard)

    return jax.tree_util.tree_map_with_path(read_array, step.state)


def _index(checkpoint: Path) -> dict[str, dict[str, Count]]:
    """Offset of every shard in `PARTS`, by array and place."""
    content = read_bytes(checkpoint / INDEX, checksums.MOST_BYTES)
    return decode_record(content, dict[str, dict[str, Count]])


def _distinct_shards(array: jax.Array) -> dict[str, jax.Array]:
    """The distinct shards of an array on devices of this process, by their place."""
    return {_place(shard.index, array.shape): shard.data for shard in array.addressable_shards}


def _needed(state: TrainState) -> list[tuple[str, tuple[int, ...], Any]]:
    """Name and shape of every array, and the indices of the shards of this process's devices."""
    return [
        (
            name_of(path),
            leaf.shape,
            leaf.sharding.addressable_devices_indices_map(leaf.shape).values(),
        )
        for path, leaf in jax.tree_util.tree_leaves_with_path(state)
    ]


def _place(index: tuple[slice, ...], shape: tuple[int, ...]) -> str:
    """The place of a shard in its array, such as `0:4,8:16`."""
    ranges = (s.indices(size) for s, size in zip(index, shape, strict=True))
    return ",".join(f"{begin}:{end}" for begin, end, _ in ranges)


def _remove_if_empty(folder: Path) -> None:
    with contextlib.suppress(OSError):  # another host's part is in it
        folder.rmdir()
