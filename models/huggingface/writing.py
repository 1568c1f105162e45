"""Safetensors, written file by file."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from exajax.errors import InputError
from exajax.files.writing import grant_as_umask, new_folder_for
from exajax.models.dimensions import ModelConfig
from exajax.models.huggingface.config import write_config
from exajax.models.huggingface.reading import INDEX, SINGLE, path_name
from exajax.models.huggingface.tensors import PAIRS, tensors, their_shape, to_theirs
from exajax.models.huggingface.text import TextForm

SHARD_BYTES = 5_000_000_000
"""Size that no written file exceeds, unless one tensor alone does."""

DTYPES = {"fp32": jnp.dtype(jnp.float32), "bf16": jnp.dtype(jnp.bfloat16)}


def save(
    folder: Path,
    config: ModelConfig,
    params: Any,
    dtype: str = "fp32",
    *,
    text: TextForm | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Writes a model as transformers reads it: `config.json`, safetensors and its tokenizer.

    No more than one file's tensors are held beside the parameters. The folder appears complete or
    not at all.

    Args:
        folder: where to; it must not hold anything yet.
        config: dimensions of the model.
        params: the tree of parameters, whole arrays on this host.
        dtype: `fp32` or `bf16`.
        text: how its text becomes tokens; None leaves that out.
        shard_bytes: largest file.

    Raises:
        InputError: Hugging Face has no form for the model, or the folder cannot be written.
    """
    described = write_config(config, dtype, text.end if text else None)
    check_free(folder)
    arrays = {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
    for pair in PAIRS[config.family]:
        if arrays[pair.ours].ndim > len(pair.our_axes):  # layers on two axes, for a pipeline
            arrays[pair.ours] = arrays[pair.ours].reshape(-1, *arrays[pair.ours].shape[2:])
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = new_folder_for(folder)
    except OSError as error:
        raise _unwritable(folder, error) from error
    try:
        _write_tensors(temporary, config, arrays, DTYPES[dtype], shard_bytes)
        for name, content in (text.files(config.seq) if text else {}).items():
            (temporary / name).write_bytes(content)
        (temporary / "config.json").write_text(json.dumps(described, indent=2) + "\n")
        temporary.replace(folder)
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if isinstance(error, OSError):
            raise _unwritable(folder, error) from error
        raise


def check_free(folder: Path) -> None:
    """Raises an `InputError` if there is something where a model is to be written."""
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise InputError("out", f"{folder} is not an empty folder", "give a new folder")


def _unwritable(folder: Path, error: OSError) -> InputError:
    return InputError("out", f"cannot write {folder}: {error.strerror}", "give another folder")


def _write_tensors(
    folder: Path,
    config: ModelConfig,
    arrays: dict[str, np.ndarray],
    dtype: np.dtype,
    shard_bytes: int,
) -> None:
    from safetensors.numpy import save_file

    all_parts = tensors(config)
    sizes = {
        name: math.prod(their_shape(parts[0][0], config)) * dtype.itemsize
        for name, parts in all_parts.items()
    }
    shards = _shards(sizes, shard_bytes)
    files: dict[str, str] = {}
    for number, names in enumerate(shards, 1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors" if shards[1:] else SINGLE
        content = {
            name: np.ascontiguousarray(
                to_theirs(all_parts[name], config, arrays.__getitem__), dtype
            )
            for name in names
        }
        save_file(content, folder / file, metadata={"format": "pt"})
        grant_as_umask(folder / file)
        files |= dict.fromkeys(names, file)
    if shards[1:]:
        index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": files}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")


def _shards(sizes: dict[str, int], shard_bytes: int) -> list[list[str]]:
    """Returns the names of each file's tensors, in order, each file as full as it may be."""
    shards: list[list[str]] = [[]]
    filled = 0
    for name, size in sizes.items():
        if shards[-1] and filled + size > shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += size
    return shards
