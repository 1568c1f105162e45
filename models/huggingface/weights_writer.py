"""Writer of Hugging Face models: `config.json`, safetensors, and the tokenizer."""

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
from exajax.models.huggingface.tensor_mapping import MAPPINGS, build_tensor, tensor_shape, tensors
from exajax.models.huggingface.tokenizer_files import TextForm
from exajax.models.huggingface.weights_reader import INDEX, SINGLE, path_name

SHARD_BYTES = 5_000_000_000
"""Limit on the size of a file, except for one with a single tensor."""

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
    """Writes a folder that transformers can load: `config.json`, safetensors and the tokenizer.

    Needs memory for one file besides the parameters. The folder appears complete or not at all.

    Args:
        folder: folder to write; must not exist or be empty.
        config: dimensions of the model.
        params: the tree of parameters, unsharded arrays on this host.
        dtype: type to write, `fp32` or `bf16`.
        text: the tokenizer; None to leave it out.
        shard_bytes: limit on the size of a file.

    Raises:
        InputError: transformers has no such architecture, or the folder cannot be written.
    """
    config_json = write_config(config, dtype, text.end if text else None)
    check_free(folder)
    arrays = {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
    for mapping in MAPPINGS[config.family]:
        if arrays[mapping.path].ndim > len(
            mapping.array_axes
        ):  # layers on two axes, for a pipeline
            arrays[mapping.path] = arrays[mapping.path].reshape(-1, *arrays[mapping.path].shape[2:])
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = new_folder_for(folder)
    except OSError as error:
        raise _unwritable(folder, error) from error
    try:
        _write_tensors(temporary, config, arrays, DTYPES[dtype], shard_bytes)
        for name, content in (text.files(config.seq) if text else {}).items():
            (temporary / name).write_bytes(content)
        (temporary / "config.json").write_text(json.dumps(config_json, indent=2) + "\n")
        temporary.replace(folder)
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if isinstance(error, OSError):
            raise _unwritable(folder, error) from error
        raise


def check_free(folder: Path) -> None:
    """Raises an `InputError` if a folder to be written exists and is not empty."""
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

    parts_of = tensors(config)
    sizes = {
        name: math.prod(tensor_shape(parts[0][0], config)) * dtype.itemsize
        for name, parts in parts_of.items()
    }
    shards = _files_of(sizes, shard_bytes)
    files: dict[str, str] = {}
    for number, names in enumerate(shards, 1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors" if shards[1:] else SINGLE
        content = {
            name: np.ascontiguousarray(
                build_tensor(parts_of[name], config, arrays.__getitem__), dtype
            )
            for name in names
        }
        save_file(content, folder / file, metadata={"format": "pt"})
        grant_as_umask(folder / file)
        files |= dict.fromkeys(names, file)
    if shards[1:]:
        index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": files}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")


def _files_of(sizes: dict[str, int], shard_bytes: int) -> list[list[str]]:
    """Names of the tensors of each file, in order; each file is filled up to the limit."""
    shards: list[list[str]] = [[]]
    filled = 0
    for name, size in sizes.items():
        if shards[-1] and filled + size > shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += size
    return shards
