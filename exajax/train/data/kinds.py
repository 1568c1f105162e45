"""What a file is: text, rows of JSON, or something that is not read, by its name and its bytes."""

import codecs
import gzip
import hashlib
import io
import re
import stat
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from exajax.errors import InputError
from exajax.files.paths import is_too_many_open, too_many_open
from exajax.files.reading import Malformed, shown_path
from exajax.train.data import rows
from exajax.train.data.listing import (
    ARROW,
    BINARY,
    COMPRESSED,
    CSV,
    EMPTY,
    NO_FILE,
    NO_ROWS,
    NOT_UTF8,
    PARQUET,
    POINTER,
    SHARD,
)

PIECE_BYTES = 1 << 20

MOST_UNPACKED = 200
"""A file may unpack to so many times its size: text to some 10 times, the barest zeros to 1,000."""

ALWAYS_UNPACKED_BYTES = 256 << 20
"""What a file may unpack to, however small it is."""

GZIP = b"\x1f\x8b"
LFS_POINTER = b"version https://git-lfs.github.com/spec/"
FRONT_MATTER = (b"---\n", b"---\r\n")
"""What a dataset card of the Hub begins with."""

_MAGIC = (
    (b"PAR1", PARQUET),
    (b"ARROW1", ARROW),
    (b"FEA1", ARROW),
    (b"PK\x03\x04", COMPRESSED),
    (b"\x28\xb5\x2f\xfd", COMPRESSED),  # zstd
    *((b"BZh%d1AY&SY" % level, COMPRESSED) for level in range(1, 10)),
    (b"\xfd7zXZ", COMPRESSED),
    (b"7z\xbc\xaf", COMPRESSED),
    (LFS_POINTER, POINTER),
)

_BY_SUFFIX = {
    ".parquet": PARQUET,
    ".arrow": ARROW,
    ".feather": ARROW,
    ".csv": CSV,
    ".tsv": CSV,
    ".tar": COMPRESSED,
    ".tgz": COMPRESSED,
    ".array_record": SHARD,
}

_LICENCE = re.compile(
    r"(?:(?:un)?licen[cs]e|copying|notice)(?:[-_][a-z0-9]+(?:\.\d)?)?(?:\.(?:txt|md|rst))?", re.I
)
_README = re.compile(r"readme(?:\.(?:md|txt|rst))?", re.I)


@dataclass(frozen=True)
class DataFile:
    """A file that is read.

    Attributes:
        path: where it lies.
        form: `text`, one document; `lines` or `items`, rows of JSON with one each.
        packed: whether it is compressed with gzip.
        kind: its form by the name that people know: `text`, `jsonl`, `json`, `.gz` where packed.
        size_bytes: of its content, unpacked.
        digest: hash of its content and its form.
    """

    path: Path
    form: str
    packed: bool
    kind: str
    size_bytes: int
    digest: bytes


def look(path: Path) -> DataFile | str:
    """Returns what a file is; the kind of those that are left out if it cannot be read as text.

    Raises:
        InputError: it is damaged, or may not be read.
    """
    with errors_named(path):
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            return NO_FILE
        with path.open("rb") as file:
            head = file.read(512)
        if not status.st_size:
            return EMPTY
        packed = head.startswith(GZIP)
        name = path.name.lower().removesuffix(".gz")
        left_out = next((kind for magic, kind in _MAGIC if head.startswith(magic)), None)
        left_out = left_out or _BY_SUFFIX.get(Path(name).suffix)
        if left_out:
            return left_out
        form, kind = _form(path, Path(name).suffix, packed)
        return _read_through(path, form, kind + ".gz" * packed, packed)


def is_licence(path: Path) -> bool:
    """Returns whether a file is named as licences are."""
    return bool(_LICENCE.fullmatch(path.name))


def is_card(path: Path, root: Path, *, beside_data: bool) -> bool:
    """Returns whether a text describes the data instead of being it.

    Args:
        path: the file.
        root: the folder that was given.
        beside_data: whether there are other files than such.
    """
    if not _README.fullmatch(path.name):
        return False
    if path.parent == root and beside_data:
        return True
    with errors_named(path), opened(path, packed=False) as file:
        return file.read(8).startswith(FRONT_MATTER)


def as_text(path: Path) -> DataFile | str:
    """Returns a file as one document of text, whatever else it may be."""
    with errors_named(path):
        with path.open("rb") as file:
            packed = file.read(2) == GZIP
        return _read_through(path, "text", "text" + ".gz" * packed, packed)


def opened(path: Path, packed: bool) -> BinaryIO:
    """Opens a file, unpacked; reading on beyond what text unpacks to raises `Malformed`."""
    return io.BufferedReader(_Unpacked(path), PIECE_BYTES) if packed else path.open("rb")


class _Unpacked(io.RawIOBase):
    """What a file of gzip unpacks to, within bounds."""

    def __init__(self, path: Path) -> None:
        self._file = gzip.open(path, "rb")  # noqa: SIM115 - closed with this
        self._most_bytes = max(ALWAYS_UNPACKED_BYTES, MOST_UNPACKED * path.stat().st_size)
        self._read_bytes = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        count = self._file.readinto(buffer)
        self._read_bytes += count
        if self._read_bytes > self._most_bytes:
            problem = f"unpacks to more than {self._most_bytes} bytes, and no text does"
            raise Malformed("", problem, "unpack it first, if it is text")
        return count

    def close(self) -> None:
        self._file.close()
        super().close()


@contextmanager
def errors_named(path: Path) -> Iterator[None]:
    """Turns what reading a file may raise into an `InputError` that names it."""
    try:
        yield
    except Malformed as error:
        raise error.within("data", path) from error
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(
            "data", f"{shown_path(path)} is damaged: {error}", "fetch it again"
        ) from error
    except UnicodeDecodeError as error:
        raise InputError(
            "data", f"{shown_path(path)} has changed while it was read", "leave it as it is"
        ) from error
    except OSError as error:
        if is_too_many_open(error):
            raise too_many_open(path, "data") from error
        raise InputError(
            "data", f"cannot read {shown_path(path)}: {error.strerror}", "make it readable"
        ) from error


def _form(path: Path, suffix: str, packed: bool) -> tuple[str, str]:
    """Returns the form of a file and its kind."""
    if suffix in (".jsonl", ".ndjson"):
        return "lines", "jsonl"
    if suffix == ".json":
        with opened(path, packed) as file:
            begin = file.read(PIECE_BYTES).removeprefix(codecs.BOM_UTF8).lstrip()[:1]
        form = "items" if begin == b"[" else "lines"
        with opened(path, packed) as file:
            if rows.has_texts(rows.items(file) if form == "items" else rows.lines(file)):
                return form, "json"
        return "other", "json"
    return "text", "text"


def _read_through(path: Path, form: str, kind: str, packed: bool) -> DataFile | str:
    """Reads a file once; returns what it is, or the kind that it is left out as."""
    if form == "other":
        return NO_ROWS
    size_bytes, decoder = 0, codecs.getincrementaldecoder("utf-8")()
    digest = hashlib.sha256(b"" if form == "text" else form.encode() + b"\0")
    with opened(path, packed) as file:
        while data := file.read(PIECE_BYTES):
            size_bytes += len(data)
            if form == "text":
                if b"\0" in data:
                    return NOT_UTF8 if data.startswith((b"\xff\xfe", b"\xfe\xff")) else BINARY
                try:
                    decoder.decode(data)
                except UnicodeDecodeError:
                    return NOT_UTF8
            digest.update(data)
    if form == "text" and decoder.getstate()[0]:  # it ends within a character
        return NOT_UTF8
    if not size_bytes:
        return EMPTY
    return DataFile(path, form, packed, kind, size_bytes, digest.digest())
