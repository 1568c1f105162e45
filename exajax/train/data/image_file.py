"""Reads a `.npz` of labelled images within bounds: first what its arrays are, then the arrays."""

import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy

from exajax.errors import InputError
from exajax.files import paths
from exajax.files.reading import Malformed, shown, shown_path
from exajax.train.data.listing import Found, Listing

ARRAYS = ("images", "labels")
FIX = "give a .npz with arrays images [N, S, S] or [N, S, S, C] and labels [N]"

MOST_UNPACKED = 200
"""The arrays may be so many times as large as their file; those of MNIST are 5 times."""

ALWAYS_UNPACKED_BYTES = 1 << 30
"""How large they may be, however small the file is."""


@dataclass(frozen=True)
class Header:
    """What an array is.

    Attributes:
        shape: of the array.
        dtype: of its elements.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]


def read(
    given: str, check: Callable[[Header, Header], None]
) -> tuple[np.ndarray, np.ndarray, Listing]:
    """Returns images, labels, and which arrays there are.

    Args:
        given: the file.
        check: sees what images and labels are before they are read, and raises an `InputError` if
            they cannot be used.

    Raises:
        InputError: it is not such a file, or damaged.
    """
    path = paths.existing_path(given, "data", FIX)
    with _errors_named(path), zipfile.ZipFile(path) as archive:
        members = {member.filename.removesuffix(".npy"): member for member in archive.infolist()}
        for name in ARRAYS:
            if name not in members:
                raise Malformed("", f"has no array {name} among its {len(members)}", FIX)
        most_bytes = max(ALWAYS_UNPACKED_BYTES, MOST_UNPACKED * path.stat().st_size)
        if sum(members[name].file_size for name in ARRAYS) > most_bytes:
            raise Malformed("", f"unpacks to more than {most_bytes} bytes, and no images do", FIX)
        images, labels = (_header(archive, members[name], name) for name in ARRAYS)
        check(images, labels)
        arrays = []
        for name in ARRAYS:
            with archive.open(members[name]) as file:
                arrays.append(npy.read_array(file, allow_pickle=False))
        return arrays[0], arrays[1], _listing(path, members)


def _header(archive: zipfile.ZipFile, member: zipfile.ZipInfo, name: str) -> Header:
    """Returns what an array is, once its member is known to hold as much."""
    with archive.open(member) as file:
        version = npy.read_magic(file)
        if version not in ((1, 0), (2, 0)):
            raise Malformed(name, f"is an array of format {version}", "save it with numpy.savez")
        parse = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, _, dtype = parse(file)
        begin = file.tell()
    if dtype.hasobject:
        raise Malformed(name, "holds Python objects, which are not read", "give numbers")
    size = dtype.itemsize
    for length in shape:
        size *= length
    if min(shape, default=0) < 0 or begin + size != member.file_size:
        problem = f"has {member.file_size - begin} bytes, and shape {shown(shape)} of {dtype}"
        raise Malformed(name, problem, "save it again")
    return Header(tuple(shape), dtype)


def _listing(path: Path, members: Mapping[str, zipfile.ZipInfo]) -> Listing:
    read_bytes = sum(members[name].file_size for name in ARRAYS)
    others = [member for name, member in members.items() if name not in ARRAYS]
    left_out = {}
    if others:
        first = shown_path(Path(others[0].filename))
        size_bytes = sum(member.file_size for member in others)
        left_out["array"] = Found(files=len(others), size_bytes=size_bytes, first=first)
    name = shown_path(Path(path.name))
    return Listing(
        read={"npz": Found(files=1, size_bytes=read_bytes, first=name)}, left_out=left_out
    )


_FAULTS = (
    EOFError, KeyError, MemoryError, OverflowError, RecursionError, RuntimeError, SyntaxError,
    TypeError, ValueError, zipfile.BadZipFile, zlib.error, struct.error,
)  # fmt: skip
"""What zipfile and numpy raise at a damaged file."""


@contextmanager
def _errors_named(path: Path) -> Iterator[None]:
    """Turns what reading a file may raise into an `InputError` that names it."""
    try:
        yield
    except InputError:
        raise
    except Malformed as error:
        raise error.within("data", path) from error
    except OSError as error:
        problem = f"cannot read {shown_path(path)}: {error.strerror or error}"
        raise InputError("data", problem, FIX) from error
    except _FAULTS as error:
        problem = f"cannot read {shown_path(path)}: {str(error)[:200] or type(error).__name__}"
        raise InputError("data", problem, FIX) from error
