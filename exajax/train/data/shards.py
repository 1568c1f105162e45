"""Writes a tokenised dataset: every window a record of its own, read at random later."""

import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter

from exajax.errors import InputError, RunFailed
from exajax.files.reading import shown_path
from exajax.files.writing import new_folder_for
from exajax.job.runtime import json_text
from exajax.train.data.dataset import FORMAT, MANIFEST, SPLITS
from exajax.train.data.documents import Piece, Source, pieces, tokens
from exajax.train.data.tokenizer import KEPT, FileTokenizer, Tokenizer
from exajax.train.data.windows import deal, too_few

SHARD_BYTES = 256 << 20
"""Tokens of a full shard, before it is compressed."""


def write(
    source: Source,
    tokenizer: Tokenizer,
    seq: int,
    out: Path,
    watch: Callable[[Iterator[Piece]], Iterable[Piece]] = lambda texts: texts,
) -> dict[str, Any]:
    """Tokenises text into a new dataset, which appears as a whole or not at all.

    Args:
        source: the text; it is streamed.
        tokenizer: makes tokens of it.
        seq: inputs of a window.
        out: the folder to make.
        watch: sees the pieces of text go by.

    Returns:
        The manifest.

    Raises:
        InputError: the folder is there or cannot be made, or the text is too short.
        RunFailed: it could not be written to the end, as on a full disk.
    """
    check_free(out)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        new = new_folder_for(out)
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise InputError(
            "out", f"cannot write {shown_path(out)}: {why}", "give another folder"
        ) from error
    try:
        manifest = _fill(new, source, tokenizer, seq, watch)
        new.replace(out)
    except BaseException as error:
        shutil.rmtree(new, ignore_errors=True)
        if isinstance(error, (OSError, RuntimeError)):  # what was read raises neither
            why = getattr(error, "strerror", None) or error
            problem = f"cannot write {shown_path(out)}: {why}; nothing of it is kept"
            raise RunFailed(problem) from error
        raise
    return manifest


def check_free(out: Path) -> None:
    """Raises an `InputError` unless a folder is not there yet, or empty."""
    name = shown_path(out)
    try:
        if os.path.lexists(out) and not (out.is_dir() and not any(out.iterdir())):
            raise InputError("out", f"{name} is there already", "give a new folder, or remove it")
    except OSError as error:
        raise InputError(
            "out", f"cannot look at {name}: {error.strerror}", "give another folder"
        ) from error


def _fill(
    folder: Path,
    source: Source,
    tokenizer: Tokenizer,
    seq: int,
    watch: Callable[[Iterator[Piece]], Iterable[Piece]],
) -> dict[str, Any]:
    splits = [_SplitWriter(folder, name, seq, tokenizer.dtype) for name in SPLITS]
    count = documents = 0
    for held_out, ids in deal(tokens(watch(pieces(source)), tokenizer), source.size_bytes):
        splits[held_out].add(ids)
        count += len(ids)
        documents += int(np.count_nonzero(ids == tokenizer.end_of_document))
    for split in splits:
        split.close()
        if not split.shards:
            raise too_few(source.title, seq)
    if isinstance(tokenizer, FileTokenizer):
        (folder / KEPT).write_bytes(tokenizer.content)
    manifest = {
        "format": FORMAT,
        "seq": seq,
        "dtype": tokenizer.dtype.str,
        "tokenizer": tokenizer.to_json(),
        "tokens": count,
        "documents": documents,
        "source": {
            "title": source.title,
            "files": len(source.files),
            "bytes": source.size_bytes,
            "sha256": source.sha256,
            **source.listing.to_json(),
        },
        "splits": {name: split.shards for name, split in zip(SPLITS, splits, strict=True)},
    }
    (folder / MANIFEST).write_text(json_text(manifest, indent=2) + "\n")
    return manifest


class _SplitWriter:
    """Cuts a growing stream into windows and writes them to shards.

    Attributes:
        shards: file name, windows and bytes of every shard that is complete.
    """

    def __init__(self, folder: Path, name: str, seq: int, dtype: np.dtype[Any]) -> None:
        self.shards: list[dict[str, Any]] = []
        self._folder, self._name, self._seq = folder, name, seq
        self._rest = np.empty(0, dtype)
        self._writer: ArrayRecordWriter | None = None
        self._windows = 0

    @property
    def _path(self) -> Path:
        return self._folder / f"{self._name}-{len(self.shards):05}.array_record"

    def add(self, ids: np.ndarray) -> None:
        """Takes the next tokens of the stream."""
        stream = np.concatenate([self._rest, ids])
        first = 0
        while first + self._seq < len(stream):
            self._write(stream[first : first + self._seq + 1].tobytes())
            first += self._seq
        self._rest = stream[first:]

    def _write(self, window: bytes) -> None:
        if self._writer is None:
            # One window a group: the reader jumps to any of them.
            self._writer = ArrayRecordWriter(str(self._path), "group_size:1")
        self._writer.write(window)
        self._windows += 1
        if self._windows * len(window) >= SHARD_BYTES:
            self.close()

    def close(self) -> None:
        """Completes the shard that is being written."""
        if self._writer is None:
            return
        self._writer.close()
        size = self._path.stat().st_size
        self.shards.append({"file": self._path.name, "windows": self._windows, "bytes": size})
        self._writer, self._windows = None, 0
