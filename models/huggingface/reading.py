"""Safetensors, read straight onto the devices of a mesh."""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from exajax.errors import InputError
from exajax.files.reading import Malformed, read_json, relative_path, shown, shown_path
from exajax.files.schema import Record, checked
from exajax.models.dimensions import ModelConfig
from exajax.models.huggingface.tensors import PAIRS, Pair, names, tensors, their_shape, to_ours

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
"""The file of a model that is in one piece, and the table of one that is in several."""

MOST_INDEX_BYTES = 64 << 20
"""Largest index; that of 100,000 tensors has some 10 MB."""

_FLOATS = {"F64", "F32", "F16", "BF16"}
_BUFFERS = (".attn.bias", ".attn.masked_bias", ".rotary_emb.inv_freq")
"""Constants that older files hold beside the parameters."""


def check(folder: Path, config: ModelConfig, field: str) -> None:
    """Reads the headers of a folder's weights, and nothing more.

    Args:
        folder: a folder in Hugging Face's form, `model.safetensors` or an index of shards.
        config: dimensions that the weights must have.
        field: the flag that named it, for errors.

    Raises:
        InputError: a file cannot be read, or a tensor is missing, unknown or of another shape or
            type; the error names it.
    """
    with _opened(folder, config, field):
        pass


def load(folder: Path, config: ModelConfig, described: Any, field: str = "init") -> Any:
    """Reads weights onto the devices of a mesh. Every process reads its own parts alone.

    Args:
        folder: a folder in Hugging Face's form.
        config: dimensions of the model.
        described: the tree of parameters, `jax.ShapeDtypeStruct` with shardings.
        field: the flag that named the folder, for errors.

    Returns:
        The parameters, as `described`.

    Raises:
        InputError: as `check`.
    """
    pairs = {pair.ours: pair for pair in PAIRS[config.family]}
    with _opened(folder, config, field) as files:

        def leaf(path: Any, array: jax.ShapeDtypeStruct) -> jax.Array:
            pair = pairs[path_name(path)]

            def part(index: Any) -> np.ndarray:
                return _part(pair, array, index, config, files)

            return jax.make_array_from_callback(array.shape, array.sharding, part)

        return jax.tree_util.tree_map_with_path(leaf, described)


def _part(
    pair: Pair,
    array: jax.ShapeDtypeStruct,
    index: Sequence[slice],
    config: ModelConfig,
    files: dict[str, Any],
) -> np.ndarray:
    """Reads a part of one of our arrays, its layers on one axis or, for a pipeline, on two."""
    get, dtype = files.__getitem__, np.dtype(array.dtype)
    if len(index) == len(pair.our_axes):
        return to_ours(pair, index, config, get, dtype)
    (_, size), (outer, inner) = array.shape[:2], index[:2]
    start, stop, _ = inner.indices(size)
    layers = [
        slice(first * size + start, first * size + stop) for first in range(array.shape[0])[outer]
    ]
    return np.stack([to_ours(pair, (part, *index[2:]), config, get, dtype) for part in layers])


def path_name(path: Any) -> str:
    """Returns where in the tree of parameters a leaf is, as `Pair.ours` says it."""
    return jax.tree_util.keystr(path, simple=True, separator=".")


@contextlib.contextmanager
def _opened(folder: Path, config: ModelConfig, field: str) -> Iterator[dict[str, Any]]:
    """Yields every tensor of a model, opened and checked, by the name that our table has."""
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError as error:
        raise InputError(
            field, "safetensors is not installed", "pip install 'exajax[huggingface]'"
        ) from error
    with contextlib.ExitStack() as stack:
        found: dict[str, Any] = {}
        for path, wanted in _files(folder, field).items():
            if path.exists() and not path.is_file():  # to open a pipe is to wait for its writer
                raise InputError(
                    field, f"{shown_path(path)} is not a file", "download the file again"
                )
            try:
                file = stack.enter_context(safe_open(path, framework="numpy"))
                there = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            except (OSError, SafetensorError) as error:
                raise InputError(
                    field, f"{shown_path(path)} cannot be read: {error}", "download the file again"
                ) from error
            for name in wanted - there.keys():
                raise InputError(
                    field,
                    f"{shown_path(path)} has no tensor {shown(name)}, and {INDEX} says that it has",
                    "download both files again",
                )
            found |= {name: there[name] for name in wanted} if wanted else there
        yield _checked(found, folder, config, field)


class _Index(Record):
    """Which file of a model in several each of its tensors is in."""

    weight_map: dict[str, str]


def _files(folder: Path, field: str) -> dict[Path, set[str]]:
    """Returns the files of a model's weights and what of each is wanted, nothing for everything."""
    single, index = folder / SINGLE, folder / INDEX
    if not index.is_symlink() and not index.exists():
        return {single: set()}
    if single.exists():
        raise InputError(
            field,
            f"{shown_path(folder)} has both {SINGLE} and {INDEX}",
            "remove the one that is not the model's",
        )
    found: dict[Path, set[str]] = {}
    try:
        weights = checked(_Index, read_json(index, MOST_INDEX_BYTES)).weight_map
        if not weights:
            raise Malformed("weight_map", "is empty", "download the file again")
        for tensor, name in weights.items():
            found.setdefault(folder / _sibling(name, tensor), set()).add(tensor)
    except Malformed as error:
        raise error.within(field, index) from error
    return found


def _sibling(name: str, tensor: str) -> Path:
    """Returns the file that an index names for a tensor: in its own folder, whatever that links."""
    try:
        return Path(relative_path(name))
    except Malformed as error:
        raise Malformed(f"weight_map[{shown(tensor)}]", error.problem, error.fix) from error


def _checked(
    found: dict[str, Any], folder: Path, config: ModelConfig, field: str
) -> dict[str, Any]:
    prefix = "transformer."
    if config.family == "gpt" and not any(name.startswith(prefix) for name in found):
        found = {prefix + name: entry for name, entry in found.items()}  # as OpenAI's are published
    for name in names(config):  # one by one: dimensions may ask for more than memory holds
        if name not in found:
            raise InputError(
                field,
                f"{shown_path(folder)} has no tensor {name}",
                "give the weights of the whole model",
            )
    wanted = tensors(config)
    for name, parts in wanted.items():
        shape, kind = tuple(found[name].get_shape()), found[name].get_dtype()
        needed = their_shape(parts[0][0], config)
        if shape != needed or kind not in _FLOATS:
            raise InputError(
                field,
                f"tensor {name} in {shown_path(folder)} is {kind} {list(shape)}, and {config.name} "
                f"has floats {list(needed)}",
                "give weights and a config.json of the same model",
            )
    tied = {"lm_head.weight", prefix + "lm_head.weight"} if config.family == "gpt" else set()
    unknown = [n for n in found if n not in wanted and n not in tied and not n.endswith(_BUFFERS)]
    if unknown:
        raise InputError(
            field,
            f"tensor {shown(unknown[0])} in {shown_path(folder)} is no part of a {config.family}",
            "give a model without it",
        )
    return found
