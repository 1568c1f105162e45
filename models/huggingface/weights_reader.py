"""Reader of Hugging Face weights: safetensors, straight onto the devices of a mesh."""

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
from exajax.models.huggingface.tensor_mapping import (
    MAPPINGS,
    TensorMapping,
    read_array,
    tensor_names,
    tensor_shape,
    tensors,
)

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
"""File of a model in one piece, and index of a model in several files."""

MOST_INDEX_BYTES = 64 << 20
"""Limit on the size of an index; that of 100,000 tensors has some 10 MB."""

_FLOATS = {"F64", "F32", "F16", "BF16"}
_BUFFERS = (".attn.bias", ".attn.masked_bias", ".rotary_emb.inv_freq")
"""Suffixes of constants that older files contain besides the parameters."""


def check(folder: Path, config: ModelConfig, field: str) -> None:
    """Checks the weights of a folder by their headers, without reading them.

    Args:
        folder: a Hugging Face folder, with `model.safetensors` or an index of several files.
        config: dimensions that the weights must have.
        field: field that errors name.

    Raises:
        InputError: a file cannot be read, or a tensor is missing, unknown or of another shape or
            type; the error names it.
    """
    with _open_weights(folder, config, field):
        pass


def load(folder: Path, config: ModelConfig, shapes: Any, field: str = "init") -> Any:
    """Parameters read onto the devices of a mesh; every process reads only its own shards.

    Args:
        folder: a Hugging Face folder.
        config: dimensions of the model.
        shapes: the tree of parameters, `jax.ShapeDtypeStruct` with shardings.
        field: field that errors name.

    Returns:
        The parameters, with these shapes and shardings.

    Raises:
        InputError: like `check`.
    """
    mappings = {mapping.path: mapping for mapping in MAPPINGS[config.family]}
    with _open_weights(folder, config, field) as files:

        def leaf(path: Any, array: jax.ShapeDtypeStruct) -> jax.Array:
            mapping = mappings[path_name(path)]

            def part(index: Any) -> np.ndarray:
                return _read_part(mapping, array, index, config, files)

            return jax.make_array_from_callback(array.shape, array.sharding, part)

        return jax.tree_util.tree_map_with_path(leaf, shapes)


def _read_part(
    mapping: TensorMapping,
    array: jax.ShapeDtypeStruct,
    index: Sequence[slice],
    config: ModelConfig,
    files: dict[str, Any],
) -> np.ndarray:
    """A slice of an array, whose layers are one axis, or two for an interleaved pipeline."""
    get, dtype = files.__getitem__, np.dtype(array.dtype)
    if len(index) == len(mapping.array_axes):
        return read_array(mapping, index, config, get, dtype)
    (_, size), (outer, inner) = array.shape[:2], index[:2]
    start, stop, _ = inner.indices(size)
    layers = [
        slice(first * size + start, first * size + stop) for first in range(array.shape[0])[outer]
    ]
    return np.stack(
        [read_array(mapping, (part, *index[2:]), config, get, dtype) for part in layers]
    )


def path_name(path: Any) -> str:
    """The path of a leaf in a tree of parameters, in the notation of `TensorMapping.path`."""
    return jax.tree_util.keystr(path, simple=True, separator=".")


@contextlib.contextmanager
def _open_weights(folder: Path, config: ModelConfig, field: str) -> Iterator[dict[str, Any]]:
    """Context with every tensor of a model, opened and checked, by its name in the mapping."""
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError as error:
        raise InputError(
            field, "safetensors is not installed", "pip install 'exajax[huggingface]'"
        ) from error
    with contextlib.ExitStack() as stack:
        opened: dict[str, Any] = {}
        for path, expected in _files(folder, field).items():
            if path.exists() and not path.is_file():  # opening a pipe would block
                raise InputError(
                    field, f"{shown_path(path)} is not a file", "download the file again"
                )
            try:
                file = stack.enter_context(safe_open(path, framework="numpy"))
                available = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            except (OSError, SafetensorError) as error:
                raise InputError(
                    field, f"{shown_path(path)} cannot be read: {error}", "download the file again"
                ) from error
            for name in expected - available.keys():
                raise InputError(
                    field,
                    f"{shown_path(path)} has no tensor {shown(name)}, and {INDEX} says that it has",
                    "download both files again",
                )
            opened |= {name: available[name] for name in expected} if expected else available
        yield _check_tensors(opened, folder, config, field)


class _Index(Record):
    """Index of a model in several files: the file of each tensor."""

    weight_map: dict[str, str]


def _files(folder: Path, field: str) -> dict[Path, set[str]]:
    """Files of a model's weights, each with the tensors to read; an empty set means all."""
    single, index = folder / SINGLE, folder / INDEX
    if not index.is_symlink() and not index.exists():
        return {single: set()}
    if single.exists():
        raise InputError(
            field,
            f"{shown_path(folder)} has both {SINGLE} and {INDEX}",
            "remove the one that is not the model's",
        )
    files: dict[Path, set[str]] = {}
    try:
        weights = checked(_Index, read_json(index, MOST_INDEX_BYTES)).weight_map
        if not weights:
            raise Malformed("weight_map", "is empty", "download the file again")
        for tensor, name in weights.items():
            files.setdefault(folder / _sibling(name, tensor), set()).add(tensor)
    except Malformed as error:
        raise error.within(field, index) from error
    return files


def _sibling(name: str, tensor: str) -> Path:
    """The path that an index gives for the file of a tensor, checked to stay in the folder."""
    try:
        return Path(relative_path(name))
    except Malformed as error:
        raise Malformed(f"weight_map[{shown(tensor)}]", error.problem, error.fix) from error


def _check_tensors(
    found: dict[str, Any], folder: Path, config: ModelConfig, field: str
) -> dict[str, Any]:
    prefix = "transformer."
    if config.family == "gpt" and not any(name.startswith(prefix) for name in found):
        found = {prefix + name: entry for name, entry in found.items()}  # as OpenAI's are published
    for name in tensor_names(config):  # one by one: dimensions may ask for more than memory holds
        if name not in found:
            raise InputError(
                field,
                f"{shown_path(folder)} has no tensor {name}",
                "give the weights of the whole model",
            )
    wanted = tensors(config)
    for name, parts in wanted.items():
        shape, kind = tuple(found[name].get_shape()), found[name].get_dtype()
        needed = tensor_shape(parts[0][0], config)
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
