"""Datasets on disk: what goes in comes out, as a whole or not at all."""

import json

import numpy as np
import pytest

from exajax import InputError
from exajax.train.data import shards
from exajax.train.data.dataset import open_dataset
from exajax.train.data.documents import pieces, scan, tokens
from exajax.train.data.shards import write
from exajax.train.data.tokenizer import load_tokenizer
from exajax.train.data.windows import split
from tests.train.data.conftest import DOCUMENTS


@pytest.fixture(scope="module")
def dataset(tmp_path_factory, folder, tokenizer_file):
    out = tmp_path_factory.mktemp("dataset") / "of" / "windows"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "SHARD_BYTES", 20_000)
        write(scan(str(folder)), load_tokenizer(str(tokenizer_file)), 32, out)
    return out


def test_a_dataset_holds_the_windows_that_the_text_has_in_memory(dataset, folder, tokenizer_file):
    tokenizer, source = load_tokenizer(str(tokenizer_file)), scan(str(folder))
    stream = list(tokens(pieces(source), tokenizer))
    opened = open_dataset(str(dataset))
    assert len(opened.train.shards) > 1
    in_memory = split(stream, source.size_bytes, 32, "")
    for ours, theirs in zip((opened.train, opened.held_out), in_memory, strict=True):
        assert len(ours) == len(theirs)
        order = np.random.default_rng(0).permutation(len(ours))
        np.testing.assert_array_equal(ours.read(order), theirs.read(order))
    assert opened.sha256 == source.sha256


def test_the_documents_can_be_read_back_from_the_shards(dataset, tokenizer_file):
    tokenizer = load_tokenizer(str(dataset / "tokenizer.json"))
    assert tokenizer == load_tokenizer(str(tokenizer_file))
    opened = open_dataset(str(dataset))
    train = opened.train.read(np.arange(len(opened.train)))
    joined = np.concatenate([train[0], *train[1:, 1:]])
    texts = tokenizer.decode(joined).split("<|endoftext|>")
    found = set(texts) & set(DOCUMENTS)
    assert len(found) > 0.85 * len(DOCUMENTS)  # the rest is held out, or cut at a block's edge


def test_a_manifest_says_what_is_in_it(dataset, tokenizer_file):
    manifest = json.loads((dataset / "dataset.json").read_text())
    tokenizer = load_tokenizer(str(tokenizer_file))
    assert manifest["tokenizer"] == tokenizer.to_json()
    assert manifest["documents"] == len(DOCUMENTS)
    assert manifest["tokens"] == sum(map(len, tokenizer.encode(DOCUMENTS))) + len(DOCUMENTS)
    assert manifest["dtype"] == "<u2"


class Stop(BaseException):
    """As Ctrl-C comes: no Exception."""


def test_a_failed_write_leaves_nothing(tmp_path, folder, tokenizer_file):
    def stop(texts):
        for number, piece in enumerate(texts):
            if number == 300:
                raise Stop
            yield piece

    with pytest.raises(Stop):
        write(scan(str(folder)), load_tokenizer("bytes"), 32, tmp_path / "out", stop)
    assert not list(tmp_path.iterdir())
    (tmp_path / "short.txt").write_text("short")
    with pytest.raises(InputError, match="too few tokens"):
        write(scan(str(tmp_path)), load_tokenizer("bytes"), 32, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["short.txt"]


def test_a_folder_that_is_there_is_not_touched(tmp_path, folder):
    (tmp_path / "mine").write_text("kept")
    with pytest.raises(InputError, match="is there already") as caught:
        write(scan(str(folder)), load_tokenizer("bytes"), 32, tmp_path)
    assert caught.value.field == "--out"
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


@pytest.fixture
def damaged(tmp_path, folder):
    write(scan(str(folder)), load_tokenizer("bytes"), 32, tmp_path / "data")
    return tmp_path / "data"


def test_a_shard_cut_short_is_named(damaged):
    shard = damaged / "train-00000.array_record"
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(InputError, match=r"train-00000\.array_record does not have"):
        open_dataset(str(damaged))


def test_a_shard_with_other_content_is_named(damaged):
    shard = damaged / "train-00000.array_record"
    content = bytearray(shard.read_bytes())
    content[len(content) // 4 : len(content) // 2] = bytes(len(content) // 2 - len(content) // 4)
    shard.write_bytes(content)
    train = open_dataset(str(damaged)).train
    with pytest.raises(InputError, match="is damaged"):
        train.read(np.arange(len(train)))


def test_tokens_that_the_tokenizer_does_not_have_are_named(damaged):
    manifest = json.loads((damaged / "dataset.json").read_text())
    manifest["tokenizer"]["vocab_size"] = 100
    (damaged / "dataset.json").write_text(json.dumps(manifest))
    with pytest.raises(InputError, match=r"tokenizer is not that of bytes"):
        open_dataset(str(damaged)).train.read(np.arange(9))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda text: text[:50], r"dataset\.json: is not JSON"),
        (
            lambda text: text.replace('"format": 1', '"format": 9'),
            "format is 9, and this version reads 1",
        ),
        (lambda text: text.replace('"seq"', '"sec"'), "seq is missing"),
    ],
)
def test_a_damaged_manifest_is_named(damaged, change, says):
    manifest = damaged / "dataset.json"
    manifest.write_text(change(manifest.read_text()))
    with pytest.raises(InputError, match=says) as caught:
        open_dataset(str(damaged))
    assert caught.value.field == "--data"
