"""Data as the world has it, most of it bad: lines, folders, datasets, tokenizers, images."""

import bz2
import gzip
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st

from tests.fuzz.mutations import HOSTILE, as_json, damaged, mutated

TEXT = st.text(max_size=40)

GOOD_ROW = {"text": "a text of some words, ", "id": 1, "meta": {"source": ["web"]}}

ROWS: st.SearchStrategy[bytes] = st.one_of(
    st.builds(lambda text: as_json({"text": text}), TEXT),
    mutated(GOOD_ROW).map(as_json),
    damaged(as_json(GOOD_ROW)),
    st.sampled_from(
        [
            b"", b" ", b"\r", b"null", b"[]", b'{"text": NaN}', b'{"text": 1e999}', b"\xef\xbb\xbf",
            b'{"text": "a", "text": 1}', rb'{"text": "\ud800"}', b'{"a":' * 3000, b"[" * 5000,
            b'{"text": "a", "n": ' + b"9" * 5000 + b"}",
        ]
    ),
)  # fmt: skip
"""One row of JSON, good or bad."""

LINES: st.SearchStrategy[bytes] = st.builds(
    lambda rows, end: end.join(rows), st.lists(ROWS, max_size=6), st.sampled_from([b"\n", b"\r\n"])
)
"""The content of a `.jsonl`."""

ARRAYS: st.SearchStrategy[bytes] = st.one_of(
    st.lists(ROWS, max_size=4).map(lambda rows: b"[" + b",\n".join(rows) + b"]"),
    damaged(as_json([GOOD_ROW] * 3)),
)
"""The content of a `.json`."""

CONTENTS: st.SearchStrategy[bytes] = st.one_of(
    TEXT.map(lambda text: text.encode("utf8", "replace")),
    st.binary(max_size=60),
    LINES,
    ARRAYS,
    LINES.map(gzip.compress),
    damaged(gzip.compress(as_json(GOOD_ROW) * 9)),
    st.sampled_from(
        [
            b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n",
            b"PAR1\0\0PAR1", b"ARROW1\0", b"\x28\xb5\x2f\xfd\0", bz2.compress(b"a"),
            b"---\nlicense: mit\n---\n", "text".encode("utf-16"), b"\xef\xbb\xbftext",
        ]
    ),
)  # fmt: skip
"""The content of some file."""

_STEMS = (
    "a",
    "b",
    ".hidden",
    "README",
    "LICENSE",
    "dataset",
    "blobs",
    "snapshots",
    "refs",
    "\udcff",
)
_SUFFIXES = (
    "", ".txt", ".md", ".jsonl", ".json", ".jsonl.gz", ".json.gz", ".gz", ".parquet",
    ".array_record", ".tar",
)  # fmt: skip
NAMES = st.builds(lambda stem, suffix: stem + suffix, *map(st.sampled_from, (_STEMS, _SUFFIXES)))

LINKS = st.sampled_from(["..", ".", "a", "a.txt", "nowhere", "/", "../.."])

TREES: st.SearchStrategy[dict[str, Any]] = st.recursive(
    st.dictionaries(NAMES, CONTENTS | LINKS, max_size=4),
    lambda inner: st.dictionaries(NAMES, CONTENTS | LINKS | inner, max_size=4),
    max_leaves=4,
)
"""A folder by its names: bytes are a file, a text is where a link leads, a table is a folder."""


def plant(folder: Path, tree: dict[str, Any]) -> None:
    """Writes a tree; what a file system refuses is left out."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in tree.items():
        path = folder / name
        if isinstance(content, dict):
            plant(path, content)
        elif isinstance(content, str):
            path.symlink_to(content)
        else:
            path.write_bytes(content)


def manifests(content: bytes) -> st.SearchStrategy[bytes]:
    """Draws the manifest of a dataset, damaged or with other values, from a good one."""
    return mutated(json.loads(content)).map(as_json) | damaged(content)


def tokenizer_files(content: bytes) -> st.SearchStrategy[bytes]:
    """Draws a `tokenizer.json`, damaged or with other values, from a good one."""
    return mutated(json.loads(content)).map(as_json) | damaged(content)


def _npz(arrays: dict[str, Any], packed: bool) -> bytes:
    file = io.BytesIO()
    (np.savez_compressed if packed else np.savez)(file, **arrays)
    return file.getvalue()


_DTYPES = ("u1", "i8", "f2", ">f8", "?", "c8", "U3", "M8[s]", "m8[s]", "O", "V3", "g")
_SHAPES = ((20, 8, 8), (20, 8, 8, 1), (20,), (), (0, 8, 8), (20, 8, 9), (3, 8, 8))
ARRAY = st.builds(
    lambda shape, dtype, value: np.full(shape, value).astype(dtype),
    st.sampled_from(_SHAPES),
    st.sampled_from(_DTYPES),
    st.sampled_from([0, 1, 9, 200]),
) | st.sampled_from([np.full((20, 8, 8), value) for value in (np.nan, np.inf, 1e300, 1e-320)])

NPZ: st.SearchStrategy[bytes] = st.one_of(
    st.builds(
        _npz,
        st.dictionaries(st.sampled_from(["images", "labels", "more"]), ARRAY, max_size=3),
        st.booleans(),
    ),
    damaged(_npz({"images": np.zeros((20, 8, 8), "u1"), "labels": np.arange(20) % 10}, False)),
    damaged(_npz({"images": np.zeros((20, 8, 8), "u1"), "labels": np.arange(20) % 10}, True)),
)
"""The content of a `.npz` of images."""

PATHS = st.one_of(
    st.sampled_from([value for value in HOSTILE if isinstance(value, str)]),
    st.text(max_size=20),
    st.builds(lambda weight, path: f"{weight}:{path}", st.floats(), st.text(max_size=5)),
)
"""What somebody may write behind `--data`."""
