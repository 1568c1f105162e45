"""Reads a tokenised dataset: a folder of ArrayRecord shards of windows, and `dataset.json`."""

import functools
import hashlib
import os
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from exajax.errors import InputError
from exajax.files import paths
from exajax.files.reading import Malformed, read_json, relative_path, shown, shown_path
from exajax.files.schema import Items, Record, checked
from exajax.train.data.listing import Count, Listing
from exajax.train.data.shard_readers import Readers
from exajax.train.data.tokenizer import BYTES, MOST_TOKENS, ByteTokenizer, Vocabulary

FORMAT = 1
"""Of the manifest, and of how documents are packed, dealt and cut."""

MANIFEST = "dataset.json"
SHARDS = "*.array_record"
SPLITS = ("train", "held_out")

MOST_MANIFEST_BYTES = 64 << 20
"""A shard takes some 90 bytes of it, and holds 256 MiB of tokens."""

MOST_SEQ = 1 << 24

AGAIN = "make it again with exajax tokenise"

Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class _Format(Record):
    format: int


class _Tokenizer(Record):
    name: Literal["bytes", "tokenizer.json"]
    digest: Sha256
    vocab_size: Annotated[int, Field(ge=1, le=MOST_TOKENS)]
    end_of_document: Annotated[int, Field(ge=0)]


class _Source(Listing):
    files: Count
    sha256: Sha256


class _Shard(Record):
    file: str
    windows: Annotated[int, Field(ge=1, lt=2**40)]
    bytes: Annotated[int, Field(ge=1, lt=2**50)]


class _Splits(Record):
    train: Annotated[Items[_Shard], Field(min_length=1)]
    held_out: Annotated[Items[_Shard], Field(min_length=1)]


class _Manifest(Record):
    """The content of `dataset.json`."""

    format: int
    seq: Annotated[int, Field(ge=1, le=MOST_SEQ)]
    dtype: str
    tokenizer: _Tokenizer
    tokens: Count
    documents: Count = 0
    source: _Source
    splits: _Splits


SAMPLED_SHARDS, SAMPLED_BYTES = 64, 64 << 10
"""Shards, evenly spaced, and bytes at the begin and the end of each, that hosts compare."""


@dataclass(frozen=True)
class Dataset:
    """A tokenised dataset as its manifest describes it.

    Attributes:
        folder: where it lies.
        seq: inputs of its windows.
        vocabulary: of the tokenizer that made it.
        sha256: of the text it was made of.
        files: number of files of that text.
        listing: which files were read for it, and which not.
        train: windows to train on.
        held_out: windows that are never trained on.
    """

    folder: Path
    seq: int
    vocabulary: Vocabulary
    sha256: str
    files: int
    listing: Listing
    train: "ShardedWindows"
    held_out: "ShardedWindows"

    def sample(self) -> str:
        """Returns a hash of the manifest, and of size, begin and end of the shards.

        Two datasets of one text differ in it unless their difference lies in the middle of a shard,
        or in one of those between `SAMPLED_SHARDS`; to read all would take as long as an epoch.
        """
        digest = hashlib.sha256((self.folder / MANIFEST).read_bytes())
        names = [name for split in (self.train, self.held_out) for name, _ in split.shards]
        for number in np.unique(np.linspace(0, len(names) - 1, SAMPLED_SHARDS).astype(int)):
            with (self.folder / names[number]).open("rb") as file:
                size = file.seek(0, os.SEEK_END)
                digest.update(f"{names[number]} {size}\0".encode())
                for at in (0, max(0, size - SAMPLED_BYTES)):
                    file.seek(at)
                    digest.update(file.read(SAMPLED_BYTES))
        return digest.hexdigest()


def is_dataset(path: str) -> bool:
    """Returns whether a path is a tokenised dataset, and not text of which a file is named so."""
    if not paths.exists(path) or not paths.exists(str(Path(path) / MANIFEST)):
        return False
    return next(Path(path).glob(SHARDS), None) is not None


def check_not_part(path: str) -> None:
    """Raises an `InputError` if a path is a part of a dataset, or of one that is not finished."""
    if not paths.exists(path):
        return
    at = Path(path)
    if at.is_dir() and next(at.glob(SHARDS), None):
        problem = f"{shown_path(at)} holds shards of exajax tokenise and no {MANIFEST}: unfinished"
        raise InputError("data", problem, AGAIN)
    if at.name == MANIFEST and next(at.parent.glob(SHARDS), None):
        problem = f"{shown_path(at)} is the manifest of a tokenised dataset"
        raise InputError("data", problem, "give its folder")


def open_dataset(path: str) -> Dataset:
    """Reads the manifest of a dataset and checks its shards against it.

    Raises:
        InputError: the manifest or a shard is damaged, or of another version.
    """
    folder = paths.existing_path(path, "data", "give a folder of exajax tokenise")
    try:
        content = read_json(folder / MANIFEST, MOST_MANIFEST_BYTES)
        if (version := checked(_Format, content).format) != FORMAT:
            problem = f"is {version}, and this version reads {FORMAT}"
            raise Malformed("format", problem, "tokenise the text again with this version")
        manifest = checked(_Manifest, content)
        vocabulary = _vocabulary(manifest)
        _check_shards(folder, manifest)
    except Malformed as error:
        raise error.within("data", folder / MANIFEST) from error
    train, held_out = (
        ShardedWindows(
            path,
            tuple((shard.file, shard.windows) for shard in shards),
            manifest.seq,
            vocabulary.dtype,
            vocabulary.vocab_size,
        )
        for shards in (manifest.splits.train, manifest.splits.held_out)
    )
    source = manifest.source
    listing = Listing.model_validate(source.model_dump())
    return Dataset(
        folder, manifest.seq, vocabulary, source.sha256, source.files, listing, train, held_out
    )


def _vocabulary(manifest: _Manifest) -> Vocabulary:
    """Returns the vocabulary of a dataset, once it is known to be possible."""
    vocabulary = Vocabulary(**manifest.tokenizer.model_dump())
    if vocabulary.name == BYTES and vocabulary.to_json() != ByteTokenizer().to_json():
        raise Malformed("tokenizer", "is not that of bytes, as its name is", AGAIN)
    if vocabulary.end_of_document >= vocabulary.vocab_size:
        problem = f"is {vocabulary.end_of_document} of {vocabulary.vocab_size} tokens"
        raise Malformed("tokenizer.end_of_document", problem, AGAIN)
    if manifest.dtype != vocabulary.dtype.str:
        problem = f"is {shown(manifest.dtype)}, and its tokenizer needs {vocabulary.dtype.str!r}"
        raise Malformed("dtype", problem, AGAIN)
    return vocabulary


def _check_shards(folder: Path, manifest: _Manifest) -> None:
    """Raises `Malformed` unless every shard is there once, as large as it was written."""
    seen = set()
    for name in SPLITS:
        for number, shard in enumerate(getattr(manifest.splits, name)):
            where = f"splits.{name}[{number}]"
            file = relative_path(shard.file)
            if file in seen:
                raise Malformed(where, f"names {shard.file}, which is named before", AGAIN)
            seen.add(file)
            try:
                size_bytes = (folder / file).stat().st_size
            except OSError as error:
                raise Malformed(where, f"{shard.file}: {error.strerror}", AGAIN) from error
            if size_bytes != shard.bytes:
                problem = f"{shard.file} does not have its {shard.bytes} bytes, but {size_bytes}"
                raise Malformed(where, problem, AGAIN)
    windows = sum(s.windows for s in (*manifest.splits.train, *manifest.splits.held_out))
    if windows * manifest.seq > manifest.tokens:
        problem = f"is {manifest.tokens}, fewer than {windows} sequences of {manifest.seq}"
        raise Malformed("tokens", problem, AGAIN)


@dataclass(frozen=True)
class ShardedWindows:
    """The windows of one part of a dataset.

    Attributes:
        path: the dataset, as it was given.
        shards: file name and number of windows of each.
        seq: inputs of a window.
        dtype: of a token on disk.
        vocab_size: every token is below it.
    """

    path: str
    shards: tuple[tuple[str, int], ...]
    seq: int
    dtype: np.dtype[Any]
    vocab_size: int

    def __len__(self) -> int:
        return sum(windows for _, windows in self.shards)

    @functools.cached_property
    def _ends(self) -> np.ndarray:
        """One more than the number of each shard's last window."""
        return np.array(list(accumulate(windows for _, windows in self.shards)))

    def read(self, ids: np.ndarray) -> np.ndarray:
        """Returns some windows, int32 [len(ids), seq + 1].

        Raises:
            InputError: a shard is damaged, or holds a token that its tokenizer does not have.
        """
        order = np.argsort(ids, kind="stable")
        shard_of = np.searchsorted(self._ends, ids[order], side="right")
        wanted, records = {}, {}
        for number in np.unique(shard_of):
            file, windows = self.shards[number]
            path = Path(self.path) / file
            wanted[path] = (ids[order][shard_of == number] - self._ends[number] + windows).tolist()
            records[path] = windows
        read = np.empty((len(ids), self.seq + 1), self.dtype)
        try:
            for place, record in zip(order, _readers().read(wanted, records), strict=True):
                if len(record) != read[place].nbytes:
                    problem = f"holds a sequence of {len(record)} bytes, not {read[place].nbytes}"
                    raise Malformed("", problem, AGAIN)
                read[place] = np.frombuffer(record, self.dtype)
            if read.max(initial=0) >= self.vocab_size:
                problem = f"holds token {read.max()}, and its tokenizer has {self.vocab_size}"
                raise Malformed("", problem, AGAIN)
        except Malformed as error:
            raise error.within("data", Path(self.path)) from error
        return read.astype(np.int32)


@functools.cache
def _readers() -> Readers:
    """The open shards of all datasets of this process."""
    return Readers()
