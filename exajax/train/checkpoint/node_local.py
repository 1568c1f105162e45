"""Checkpoints on the disk of every host: quick to write and to read, for the same mesh alone.

`DIR/RUN/STEP/host-H` holds what the devices of process H held, each part once however many of them
held it: raw bytes, one part after the other, and where they belong. It goes on only on a mesh that
gives every process the same parts again; otherwise the shared folder has what it needs.
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
from exajax.train.checkpoint import folder as folders
from exajax.train.checkpoint.manifest import Count, Manifest, name_of

PARTS = "parts.bin"
INDEX = "index.json"
KEEP = 2


class LocalPart:
    """What this process writes of a checkpoint on its host's disk.

    Args:
        folder: of the run's local checkpoints.
        step: updates that the state has seen.
        notes: returns further files of the checkpoint by name, as JSON.
    """

    def __init__(self, folder: Path, step: int, notes: Callable[[], Mapping[str, Any]]) -> None:
        self._folder, self._step, self._notes = folder, step, notes
        self._final = host_folder(folder, step)
        self._saving = self._final.with_name(f"{self._final.name}{folders.SAVING}")

    def copy(self, state: TrainState) -> None:
        """Copies the parts that the devices of this process hold to the host."""
        leaves = jax.tree_util.tree_leaves_with_path(state)
        held = {name_of(path): _distinct(leaf) for path, leaf in leaves}
        for parts in held.values():
            for part in parts.values():
                part.copy_to_host_async()
        self._held = {
            name: {place: np.asarray(part) for place, part in parts.items()}
            for name, parts in held.items()
        }

    def write(self) -> int:
        """Writes the parts, where they belong and the checksums; returns the bytes."""
        shutil.rmtree(self._saving, ignore_errors=True)
        self._saving.mkdir(parents=True)
        index: dict[str, dict[str, int]] = {}
        with (self._saving / PARTS).open("wb") as file:
            for name, parts in self._held.items():
                index[name] = {}
                for place, part in parts.items():
                    index[name][place] = file.tell()
                    file.write(np.ascontiguousarray(part).reshape(-1).view(np.uint8).data)
        del self._held
        for name, content in {**self._notes(), INDEX: index}.items():
            checksums.write_json(self._saving / name, content)
        sums = checksums.sums_of(self._saving, checksums.files_in(self._saving))
        checksums.write(self._saving, sums)
        shutil.rmtree(self._final, ignore_errors=True)
        self._saving.rename(self._final)
        checksums.sync_folder(self._final.parent)
        return sum(size for size, _ in sums.values())

    def commit(self, reports: list[int]) -> int:
        """Returns the bytes of all hosts: that all wrote is the commit."""
        return sum(reports)

    def clean(self, *, failed: bool) -> None:
        """Removes older ones if every host has this one, else this one: it is of no use alone."""
        if failed:
            shutil.rmtree(self._saving, ignore_errors=True)
            shutil.rmtree(self._final, ignore_errors=True)
            return
        mine = [step for step in folders.steps_in(self._folder) if has(self._folder, step)]
        for step in mine[KEEP:]:
            shutil.rmtree(host_folder(self._folder, step), ignore_errors=True)
            _remove_if_empty(self._folder / str(step))


def host_folder(folder: Path, step: int) -> Path:
    """Returns where this process keeps its part of a local checkpoint."""
    return folder / str(step) / f"host-{jax.process_index()}"


def has(folder: Path, step: int) -> bool:
    """Returns whether this process has written its part of a local checkpoint to its end."""
    return (host_folder(folder, step) / checksums.NAME).exists()


def sweep(folder: Path) -> None:
    """Removes what saves of this process that never ended have left."""
    for step in folders.steps_in(folder):
        unfinished = host_folder(folder, step)
        shutil.rmtree(
            unfinished.with_name(f"{unfinished.name}{folders.SAVING}"), ignore_errors=True
        )
        _remove_if_empty(folder / str(step))


def remove_behind(folder: Path, done: int) -> None:
    """Removes this process's parts of checkpoints newer than the step that a run goes on from."""
    for step in folders.steps_in(folder):
        if step > done:
            shutil.rmtree(host_folder(folder, step), ignore_errors=True)
            _remove_if_empty(folder / str(step))


def fitting(folder: Path, step: TrainStep) -> list[int]:
    """Returns the steps of which this process has all the parts that its devices are to hold."""
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

    return [number for number in folders.steps_in(folder) if has(folder, number) and fits(number)]


def read_state(checkpoint: Path, step: TrainStep, saved: Manifest) -> TrainState:
    """Returns the state of a local checkpoint, whose parts are those that a step needs here.

    Raises:
        ValueError, KeyError, TypeError, OSError: it cannot be read.
    """
    index = _index(checkpoint)
    content = np.memmap(checkpoint / PARTS, np.uint8, "r")

    def one(path: tuple[object, ...], leaf: jax.ShapeDtypeStruct) -> jax.Array:
        places = index[name_of(path)]

        def part(at: Any) -> np.ndarray:
            shape = tuple(len(range(*s.indices(n))) for s, n in zip(at, leaf.shape, strict=True))
            begin = places[_place(at, leaf.shape)]
            size = int(np.prod(shape, dtype=np.int64)) * leaf.dtype.itemsize
            return np.array(content[begin : begin + size]).view(leaf.dtype).reshape(shape)

        return jax.make_array_from_callback(leaf.shape, leaf.sharding, part)

    return jax.tree_util.tree_map_with_path(one, step.state)


def _index(checkpoint: Path) -> dict[str, dict[str, Count]]:
    """Returns where the parts of every array begin in `PARTS`, by name and place."""
    content = read_bytes(checkpoint / INDEX, checksums.MOST_BYTES)
    return decode_record(content, dict[str, dict[str, Count]])


def _distinct(array: jax.Array) -> dict[str, jax.Array]:
    """Returns the parts of an array that devices of this process hold, by their place."""
    return {_place(shard.index, array.shape): shard.data for shard in array.addressable_shards}


def _needed(state: TrainState) -> list[tuple[str, tuple[int, ...], Any]]:
    """Returns name, shape and the indices that devices of this process are to hold."""
    return [
        (
            name_of(path),
            leaf.shape,
            leaf.sharding.addressable_devices_indices_map(leaf.shape).values(),
        )
        for path, leaf in jax.tree_util.tree_leaves_with_path(state)
    ]


def _place(index: tuple[slice, ...], shape: tuple[int, ...]) -> str:
    """Returns the place of a part in its array, `0:4,8:16`."""
    ranges = (s.indices(size) for s, size in zip(index, shape, strict=True))
    return ",".join(f"{begin}:{end}" for begin, end, _ in ranges)


def _remove_if_empty(folder: Path) -> None:
    with contextlib.suppress(OSError):  # another host's part is in it
        folder.rmdir()
