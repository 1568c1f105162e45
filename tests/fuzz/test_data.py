"""Whatever lies where `--data` and `--tokenizer` point, it ends in a value or in one line."""

import json
import shutil
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from exajax.errors import InputError
from exajax.models.presets import PRESETS
from exajax.train.data.corpus import load_corpus
from exajax.train.data.dataset import open_dataset
from exajax.train.data.documents import BAD_LINES, pieces, scan
from exajax.train.data.images import load_images
from exajax.train.data.shards import write
from exajax.train.data.tokenizer import load_tokenizer
from tests.fuzz import strategies_data as drawn
from tests.fuzz.mutations import damaged
from tests.train.data.conftest import tokenizer_file  # noqa: F401 - a fixture


def ended(call: Callable[[], Any]) -> Any:
    """Returns what a call returns, or the error that it ends in, which has to be one line."""
    try:
        return call()
    except InputError as error:
        assert "\n" not in str(error)
        assert len(str(error)) < 1000
        str(error).encode()
        assert error.field in ("data", "tokenizer")
        assert error.fix
        return error


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("good")
    (folder / "text").write_text("a text of some words, " * 200)
    write(scan(str(folder / "text")), load_tokenizer("bytes"), 16, folder / "out")
    return folder / "out"


@given(drawn.TREES, st.sampled_from(BAD_LINES))
def test_any_folder_is_read_or_named(tree: dict[str, Any], bad_lines: str) -> None:
    with tempfile.TemporaryDirectory() as new:
        folder = Path(new) / "in" / "given"
        drawn.plant(folder, tree)
        source = ended(lambda: scan(str(folder), bad_lines))
        if isinstance(source, InputError):
            return
        found = ended(lambda: list(pieces(source)))
        if not isinstance(found, InputError):
            assert all("\0" not in text for text, _ in found)
            assert bad_lines == "skip" or not source.listing.bad_lines
        listing = json.loads(json.dumps(source.listing.to_json()))
        assert sum(kind["files"] for kind in listing["read"].values()) == len(source.files)
        source.listing.describe().encode()


@given(drawn.LINES | drawn.ARRAYS, st.sampled_from(["a.jsonl", "a.json", "a.txt", "a"]))
def test_any_file_of_rows_is_read_or_named(content: bytes, name: str) -> None:
    with tempfile.TemporaryDirectory() as new:
        path = Path(new) / name
        path.write_bytes(content)
        strict = ended(lambda: [text for text, _ in pieces(scan(str(path)))])
        loose = ended(lambda: [text for text, _ in pieces(scan(str(path), "skip"))])
        if not isinstance(strict, InputError):
            assert loose == strict  # nothing is skipped that is not bad


@given(drawn.PATHS)
def test_any_path_is_read_or_named(path: str) -> None:
    ended(lambda: load_corpus(path, None, 16, 256))
    ended(lambda: load_tokenizer(path))


@given(st.data())
def test_any_manifest_is_read_or_named(dataset: Path, data: st.DataObject) -> None:
    content = data.draw(drawn.manifests((dataset / "dataset.json").read_bytes()))
    with tempfile.TemporaryDirectory() as new:
        folder = shutil.copytree(dataset, Path(new) / "data")
        (folder / "dataset.json").write_bytes(content)

        def read() -> None:
            opened = open_dataset(str(folder))
            for part in (opened.train, opened.held_out):
                read = part.read(np.array([0, len(part) - 1]))
                assert read.shape == (2, opened.seq + 1)
                assert read.max() < opened.vocabulary.vocab_size

        ended(read)


@given(st.data())
def test_any_shard_is_read_or_named(dataset: Path, data: st.DataObject) -> None:
    shard = (dataset / "train-00000.array_record").read_bytes()
    content = data.draw(damaged(shard))
    with tempfile.TemporaryDirectory() as new:
        folder = shutil.copytree(dataset, Path(new) / "data")
        (folder / "train-00000.array_record").write_bytes(content)
        manifest = json.loads((folder / "dataset.json").read_text())
        manifest["splits"]["train"][0]["bytes"] = max(1, len(content))
        (folder / "dataset.json").write_text(json.dumps(manifest))
        good = open_dataset(str(dataset)).train.read(np.arange(9))
        read = ended(lambda: open_dataset(str(folder)).train.read(np.arange(9)))
        assert isinstance(read, InputError) or (read == good).all()


@given(st.data())
def test_any_tokenizer_is_read_or_named(
    tokenizer_file: Path,  # noqa: F811 - the fixture
    data: st.DataObject,
) -> None:
    content = data.draw(drawn.tokenizer_files(tokenizer_file.read_bytes()))
    with tempfile.TemporaryDirectory() as new:
        path = Path(new) / "tokenizer.json"
        path.write_bytes(content)
        tokenizer = ended(lambda: load_tokenizer(str(path)))
        if not isinstance(tokenizer, InputError):
            found = ended(lambda: tokenizer.encode(["some <|endoftext|> text, ünlike\n"]))
            assert isinstance(found, InputError) or tokenizer.end_of_document not in found[0]


@given(drawn.NPZ)
def test_any_images_are_read_or_named(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as new, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of numpy, at casts
        path = Path(new) / "images.npz"
        path.write_bytes(content)
        images = ended(lambda: load_images(str(path), PRESETS["vit-tiny"]))
        if not isinstance(images, InputError):
            assert np.isfinite(images.mean).all()
            assert (images.deviation > 0).all()
            json.dumps(images.to_json())
