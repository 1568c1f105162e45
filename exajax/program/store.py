"""Cache of compiled steps on disk, for described devices.

JAX's own cache cannot load a program for devices that are not attached. An entry here is a
compressed `Artifact` in `$XDG_CACHE_HOME/exajax/programs` (or `~/.cache/exajax/programs`), named by
the hash of everything that the program depends on. An unreadable entry counts as missing. Like
JAX's cache, it is turned off by `JAX_ENABLE_COMPILATION_CACHE=false`.
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
"""Limit on the size of the folder, which evicts the oldest entries; one has about 0.1 MB."""

MOST_PACKED, MOST_UNPACKED = 1 << 26, 1 << 29
"""Limits on an entry, compressed and not; that of a large model has some 4 MB uncompressed."""

SETTINGS = ("JAX_", "XLA_", "CUDA_", "LIBTPU_", "LD_LIBRARY_PATH")
"""Prefixes of the environment variables that may change a compiled program."""


def keeps_programs_of(cluster: Cluster) -> bool:
    """Whether programs for a cluster are stored; those for a CPU depend on this host's."""
    return cluster.chip.platform != "cpu"


def key(*parts: Any) -> str:
    """The name of an entry: a hash of `parts`, all installed packages, and the environment."""
    hashed = [*parts, provenance.source_digest(), _installed(), _settings()]
    return hashlib.sha256(json.dumps(hashed, sort_keys=True).encode()).hexdigest()


def load(key: str) -> Artifact | None:
    """The entry of a name; None if it is missing or unreadable."""
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
        os.utime(path)  # so that an entry in use is not evicted
    return artifact


def store(key: str, artifact: Artifact) -> None:
    """Writes an entry atomically; does nothing if the folder cannot be written."""
    path = _path(key)
    if path is None:
        return
    compressed = zlib.compress(json.dumps(dataclasses.asdict(artifact)).encode())
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = new_path(path)
        temporary.write_bytes(compressed)
        temporary.replace(path)
        _evict(path.parent)


def _evict(folder: Path) -> None:
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
    """Name and version of every installed package, and of the interpreter."""
    folders = (Path(folder) for folder in dict.fromkeys(sys.path) if folder)
    packages = {path.name for folder in folders for path in folder.glob("*.dist-info")}
    return [sys.version, *sorted(packages)]


def _settings() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name.startswith(SETTINGS)}
