"""Checksums of the files of a checkpoint, compared before anything else reads the files.

CRC-32 of zlib rather than a cryptographic hash, since the damage comes from disks, not from
attackers. It detects every burst of flipped bits up to 32 long, and misses one in 2^32 of other
damage, which the digests of the arrays then detect; on one core it is twice as fast as SHA-256 (2.3
against 1.2 GB/s).
"""

import errno
import json
import os
import zlib
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, Strict, field_validator

from exajax.files.reading import read_json, relative_path
from exajax.files.schema import Record, checked

NAME = "checksums.json"
BLOCK_BYTES = 4 * 2**20
THREADS = 4

MOST_BYTES = 1 << 30
"""Bytes; more than the checksums or the manifest of any checkpoint have."""

NO_FILE = (errno.ELOOP, errno.ENOTDIR, errno.EISDIR, errno.ENXIO, errno.EIO)
"""Errors of a path without a file, or of a file whose bytes the disk cannot read."""

Sums = Mapping[str, tuple[int, str]]
"""Size in bytes and checksum of files, by their paths in the folder."""


_Size = Annotated[int, Field(ge=0)]


@dataclass(frozen=True)
class Damage:
    """Damage of a file of a checkpoint.

    Attributes:
        file: its path in the folder of the checkpoint, or the name of an array.
        how: the kind of damage in words, such as `is missing`.
    """

    file: str
    how: str

    def __str__(self) -> str:
        return f"{self.file} {self.how}"


class DamagedError(Exception):
    """A checkpoint, or a part of one, is not what was saved.

    Args:
        damages: at least one.
    """

    def __init__(self, damages: Sequence[Damage]) -> None:
        super().__init__("; ".join(map(str, damages)))
        self.damages = tuple(damages)


class _Content(Record):
    """`checksums.json`."""

    algorithm: Literal["crc32"]
    files: dict[str, Annotated[tuple[_Size, str], Strict(False)]]
    crc32: str

    @field_validator("files")
    @classmethod
    def _stay_inside(cls, files: dict[str, tuple[int, str]]) -> dict[str, tuple[int, str]]:
        for file in files:
            relative_path(file)
        return files


def files_in(folder: Path) -> list[str]:
    """The paths of all files in a folder, sorted, without its checksums."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return sorted(str(path.relative_to(folder)) for path in files if path.name != NAME)


def sums_of(folder: Path, files: Iterable[str]) -> Sums:
    """Size and checksum of files, after files and folders are synced to the disk.

    Threads read several files at a time, since zlib releases the interpreter's lock.
    """
    paths = list(files)
    with ThreadPoolExecutor(THREADS) as pool:
        sums = list(pool.map(lambda file: _sum(folder / file, sync=True), paths))
    for parent in {(folder / file).parent for file in paths}:
        sync_folder(parent)
    return dict(zip(paths, sums, strict=True))


def write(folder: Path, sums: Sums) -> None:
    """Writes the checksums of a folder, after which it counts as a checkpoint.

    Raises:
        OSError: they cannot be written, or the size of a file has changed.
    """
    files = dict(sorted(sums.items()))
    write_json(folder / NAME, {"algorithm": "crc32", "files": files, "crc32": _crc_of(files)})
    for file, (size, _) in read(folder).items():
        if os.path.getsize(folder / file) != size:
            raise OSError(f"{file} had {size} bytes and has {os.path.getsize(folder / file)} now")


def read(folder: Path) -> Sums:
    """The checksums of a folder.

    Raises:
        FileNotFoundError: there are none.
        ValueError: they are damaged themselves.
    """
    if not (folder / NAME).exists():
        raise FileNotFoundError(folder / NAME)
    content = read_json(folder / NAME, MOST_BYTES)
    checked(_Content, content)
    if content["crc32"] != _crc_of(content["files"]):
        raise ValueError("has other bytes than were written")
    return {file: (size, crc) for file, (size, crc) in content["files"].items()}


def damage_of(folder: Path, files: Iterable[str], sums: Sums) -> list[Damage]:
    """The damage of files of a folder, by the checksums that they should have.

    Raises:
        OSError: a file cannot be read for a reason other than damage.
    """

    def compare(file: str) -> Damage | None:
        size, crc = sums[file]
        try:
            actual = os.path.getsize(folder / file)
            if actual < size:
                return Damage(file, f"was cut from {size} to {actual} bytes")
            if actual > size:
                return Damage(file, f"has grown from {size} to {actual} bytes")
            if _sum(folder / file) != (size, crc):
                return Damage(file, f"has other bytes than were written ({size} bytes)")
            return None
        except FileNotFoundError:
            return Damage(file, "is missing")
        except OSError as error:
            if error.errno not in NO_FILE:
                raise
            return Damage(file, f"cannot be read: {error.strerror}")

    with ThreadPoolExecutor(THREADS) as pool:
        return [damage for damage in pool.map(compare, files) if damage]


def write_json(path: Path, content: Any) -> None:
    """Writes a JSON file atomically, and syncs it to the disk."""
    write_text(path, json.dumps(content, indent=1))


def write_text(path: Path, content: str) -> None:
    """Writes a text file atomically, and syncs it to the disk."""
    temporary = path.with_name(f".{path.name}.new")
    with temporary.open("w") as file:
        file.write(content + "\n")
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Syncs the entries of a folder to the disk."""
    opened = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def _sum(path: Path, *, sync: bool = False) -> tuple[int, str]:
    block = memoryview(bytearray(BLOCK_BYTES))
    size = crc = 0
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(block):
            crc = zlib.crc32(block[:count], crc)
            size += count
        if sync:
            os.fsync(file.fileno())
    return size, f"{crc:08x}"


def _crc_of(files: Mapping[str, Any]) -> str:
    return f"{zlib.crc32(json.dumps(files, sort_keys=True).encode()):08x}"
