"""Keeps compiled steps on disk, for devices that are not there: what is read of them, by content.

JAX's own cache cannot read a program for described devices back. An entry here is a compressed
file in `$XDG_CACHE_HOME/exajax/programs` (or `~/.cache/exajax/programs`), named by the hash of all
that the program follows from. One that cannot be read counts as not there. As for JAX's cache,
`JAX_ENABLE_COMPILATION_CACHE=false` turns it off.
"""

import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import sys
import zlib
from pathlib import Path
from typing import Any

import pydantic

from exajax.files.reading import read_bytes
from exajax.files.writing import new_path
from exajax.job import environment, provenance
from exajax.machine.cluster import Cluster
from exajax.program.compiled import Artifact

MOST_BYTES = 1 << 30
"""Size of the folder; the oldest entries make room. An entry has about 0.1 MB."""

MOST_PACKED, MOST_UNPACKED = 1 << 26, 1 << 29
"""Largest entry, and largest content of one; that of a large model has some 4 MB."""

SETTINGS = ("JAX_", "XLA_", "CUDA_", "LIBTPU_", "LD_LIBRARY_PATH")
"""Beginnings of the environment variables that may change what is compiled."""


def serves(cluster: Cluster) -> bool:
    """Returns whether programs for a cluster are kept: those for a CPU are this very host's."""
    return cluster.chip.platform != "cpu"


def key(*parts: Any) -> str:
    """Returns the hash of what a program follows from, with all that is installed and set here."""
    whole = [*parts, provenance.source_digest(), _installed(), _settings()]
    return hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()


def load(key: str) -> Artifact | None:
    """Returns what was stored, None where nothing usable is."""
    path = _path(key)
    if path is None:
        return None
    try:
        unpacking = zlib.decompressobj()
        content = unpacking.decompress(read_bytes(path, MOST_PACKED), MOST_UNPACKED)
        if not unpacking.eof:  # cut off, or larger than any program
            return None
        artifact: Artifact = _artifact().validate_json(content, strict=True)
    except (zlib.error, ValueError):
        return None
    with contextlib.suppress(OSError):
        os.utime(path)  # what is used is not the oldest
    return artifact


def store(key: str, artifact: Artifact) -> None:
    """Keeps an artifact, whole or not at all; a folder that cannot be written keeps none."""
    path = _path(key)
    if path is None:
        return
    packed = zlib.compress(json.dumps(dataclasses.asdict(artifact)).encode())
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        part = new_path(path)
        part.write_bytes(packed)
        part.replace(path)
        _make_room(path.parent)


def _make_room(folder: Path) -> None:
    entries = sorted((file.stat().st_mtime, file.stat().st_size, file) for file in folder.iterdir())
    total = sum(size for _, size, _ in entries)
    for _, size, file in entries:
        if total <= MOST_BYTES:
            break
        file.unlink(missing_ok=True)
        total -= size


@functools.cache
def _artifact() -> pydantic.TypeAdapter[Artifact]:
    return pydantic.TypeAdapter(Artifact)


def _path(key: str) -> Path | None:
    if os.environ.get("JAX_ENABLE_COMPILATION_CACHE", "true").lower() in ("false", "0", "no"):
        return None
    root = environment.cache_folder()
    return root and root / "programs" / key


@functools.cache
def _installed() -> list[str]:
    """Returns name and version of every installed package, and the interpreter's version."""
    folders = (Path(folder) for folder in dict.fromkeys(sys.path) if folder)
    packages = {path.name for folder in folders for path in folder.glob("*.dist-info")}
    return [sys.version, *sorted(packages)]


def _settings() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name.startswith(SETTINGS)}
