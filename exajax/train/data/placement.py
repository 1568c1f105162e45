"""Host arrays onto devices: which rows of a batch a process needs, and where they go."""

import functools
from collections.abc import Mapping

import jax
import numpy as np

Described = Mapping[str, jax.ShapeDtypeStruct]
"""Global shapes and shardings by name."""


def local_rows(batch: Described) -> np.ndarray:
    """Returns the rows of the global batch that devices of this process hold, sorted."""
    rows: set[int] = set()
    for described in batch.values():
        indices = described.sharding.addressable_devices_indices_map(described.shape)
        for index in indices.values():
            rows.update(range(*index[0].indices(described.shape[0])))
    return np.array(sorted(rows))


def place(
    local: Mapping[str, np.ndarray], rows: np.ndarray, batch: Described
) -> dict[str, jax.Array]:
    """Puts on each device of this process its own part of a batch.

    Args:
        local: rows of the batch; what the step does not take is left out.
        rows: their numbers in the global batch, sorted; all that `local_rows` names are there.
        batch: what the step takes.
    """
    return {
        name: jax.make_array_from_callback(
            described.shape,
            described.sharding,
            functools.partial(part_of, local[name], rows, described.shape[0]),
        )
        for name, described in batch.items()
    }


def part_of(
    local: np.ndarray, rows: np.ndarray, count: int, index: tuple[slice, ...]
) -> np.ndarray:
    """Returns a part of a global array of which only some rows are here.

    Args:
        local: the rows that are here.
        rows: their numbers, sorted; all that the part needs are among them.
        count: rows of the global array.
        index: the part, as slices of the global array.
    """
    start, stop, _ = index[0].indices(count)
    first = int(np.searchsorted(rows, start))
    return local[(slice(first, first + stop - start), *index[1:])]
