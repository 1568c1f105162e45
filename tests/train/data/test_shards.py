"""Datasets on disk: what goes in comes out, as a whole or not at all."""

import json
import shutil
import subprocess
import sys

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
    assert caught.value.field == "out"
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
    assert caught.value.field == "data"


def changed(manifest, path, value):
    """Returns a manifest with one value replaced, or taken away."""
    manifest = json.loads(manifest)
    at = manifest
    for key in path[:-1]:
        at = at[key]
    if value is None:
        del at[path[-1]]
    else:
        at[path[-1]] = value
    return json.dumps(manifest)


SHARD = ("splits", "train", 0)


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        (("seq",), 0, "seq is 0"),
        (("seq",), "32", "seq is '32'"),
        (("seq",), 31, "is damaged|holds a sequence"),
        (("dtype",), "<u2", "its tokenizer needs"),
        (("dtype",), "object", "its tokenizer needs"),
        (("tokens",), -1, "tokens is -1"),
        (("tokens",), 5, "tokens is 5, fewer than"),
        (("documents",), -1, "documents is -1"),
        (("tokenizer", "vocab_size"), 10**12, "vocab_size"),
        (("tokenizer", "end_of_document"), 300, "is not that of bytes"),
        (("tokenizer", "name"), "other", "tokenizer.name is 'other'"),
        (("source", "sha256"), "0", "source.sha256 is '0'"),
        (("source", "files"), 1.5, "source.files is 1.5"),
        (("source", "read"), {"text": {"files": -1}}, "source.read.text"),
        (("splits", "train"), [], "splits.train"),
        (("splits", "held_out"), None, "splits.held_out is missing"),
        ((*SHARD, "file"), "../outside", "leads out of its folder"),
        ((*SHARD, "file"), "/etc/passwd", "leads out of its folder"),
        ((*SHARD, "file"), "held_out-00000.array_record", "which is named before|does not have"),
        ((*SHARD, "file"), "none.array_record", "No such file"),
        ((*SHARD, "file"), "x" * 300, "is no name of a file"),
        ((*SHARD, "windows"), 2, "holds .* sequences instead of 2"),
        ((*SHARD, "windows"), 10**15, "windows is 1000000000000000"),
        ((*SHARD, "bytes"), True, "bytes is True"),
    ],
)
def test_a_manifest_that_was_edited_is_named_by_its_field(damaged, path, value, says):
    manifest = damaged / "dataset.json"
    manifest.write_text(changed(manifest.read_text(), path, value))
    with pytest.raises(InputError, match=says) as caught:
        open_dataset(str(damaged)).train.read(np.arange(2))
    assert caught.value.field == "data"


def test_a_shard_of_another_dataset_is_named(damaged, dataset):
    for name in ("train-00000.array_record", "held_out-00000.array_record"):
        manifest = json.loads((damaged / "dataset.json").read_text())
        (damaged / name).write_bytes((dataset / name).read_bytes())
        split, size = name.split("-")[0], (damaged / name).stat().st_size
        manifest["splits"][split] = [{**manifest["splits"][split][0], "bytes": size, "file": name}]
        (damaged / "dataset.json").write_text(json.dumps(manifest))
    with pytest.raises(InputError, match=r"train-00000\.array_record .*sequences instead of"):
        open_dataset(str(damaged)).train.read(np.arange(2))


def test_many_shards_are_read_through_few_open_files(tmp_path, folder):
    write(scan(str(folder)), load_tokenizer("bytes"), 32, tmp_path / "0")
    for number in range(1, 90):
        shutil.copytree(tmp_path / "0", tmp_path / str(number))
    tell = """
import os, resource, sys
import numpy as np
from exajax.train.data import dataset
from exajax.train.data.dataset import open_dataset
limit = len(os.listdir("/proc/self/fd")) + 60
resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
opened = [open_dataset(f"{sys.argv[1]}/{n}").train for n in range(90)]
first = opened[0].read(np.arange(9))
for _ in range(2):
    assert all((part.read(np.arange(9)) == first).all() for part in opened)
dataset._readers.cache_clear()
hog = []
try:
    while True:
        hog.append(open("/dev/null"))
except OSError:
    opened[0].read(np.arange(9))
"""
    result = subprocess.run(
        [sys.executable, "-c", tell, str(tmp_path)], capture_output=True, text=True
    )
    last = result.stderr.splitlines()[-1]
    assert "files open at a time; raise the limit, with ulimit -n" in last, result.stderr
    assert "damaged" not in last


def test_a_full_disk_ends_in_one_line_and_leaves_nothing(tmp_path, folder, text):
    limited = f"ulimit -f 40; {sys.executable} -m exajax tokenise --seq 32 --out {tmp_path}/out"
    result = subprocess.run(
        ["bash", "-c", f"{limited} --data {text}"], capture_output=True, text=True
    )
    assert result.returncode == 1
    assert result.stderr.count("\n") == 1
    assert result.stderr.startswith("exajax: failed: cannot write"), result.stderr
    assert not list(tmp_path.iterdir())
