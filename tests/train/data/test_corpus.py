"""What `--data` and `--tokenizer` may name together."""

import json
import shutil

import numpy as np
import pytest

from exajax import InputError
from exajax.train.data.corpus import load_corpus
from exajax.train.data.documents import scan
from exajax.train.data.shards import write
from exajax.train.data.tokenizer import load_tokenizer


@pytest.fixture(scope="module")
def datasets(tmp_path_factory, folder, tokenizer_file):
    """The same text by bytes, and by the small tokenizer."""
    out = tmp_path_factory.mktemp("datasets")
    for name, given in (("bytes", "bytes"), ("small", str(tokenizer_file))):
        write(scan(str(folder)), load_tokenizer(given), 32, out / name)
    return out


def test_a_dataset_is_the_same_corpus_as_its_text(datasets, folder, tokenizer_file):
    text = load_corpus(str(folder), str(tokenizer_file), 32, 400)
    dataset = load_corpus(str(datasets / "small"), None, 32, 400)
    assert text.identity == dataset.identity
    assert text.tokens == dataset.tokens
    assert text.unigram_entropy == dataset.unigram_entropy
    assert text.identity != load_corpus(str(folder), None, 32, 400).identity


def test_unigram_entropy_of_equal_bytes_is_the_log_of_their_number(tmp_path):
    (tmp_path / "even.txt").write_bytes(bytes(range(32, 96)) * 1000)
    corpus = load_corpus(str(tmp_path), None, 16, 256)
    assert corpus.unigram_entropy == pytest.approx(np.log(64), rel=1e-3)


def test_a_mixture_normalises_its_weights(datasets, folder):
    corpus = load_corpus(f"6:{datasets / 'bytes'},2:{folder}", None, 32, 256)
    assert [part.weight for part in corpus.parts] == [0.75, 0.25]
    assert corpus.to_json()["parts"][1]["path"] == str(folder)


def test_a_path_with_a_colon_is_a_path(tmp_path):
    path = tmp_path / "0.5:text"
    path.write_text("a text, " * 1000)
    assert len(load_corpus(str(path), None, 16, 256).parts) == 1


@pytest.mark.parametrize("item", ["x:PATH", "0:PATH", "-1:PATH", "nan:PATH", "0.5:", "PATH"])
def test_a_bad_weight_is_named(folder, item):
    with pytest.raises(InputError, match="is not a weight above 0 and a path") as caught:
        load_corpus(f"0.5:{folder},{item}", None, 32, 256)
    assert caught.value.field == "data"
    assert item in str(caught.value)


def test_what_does_not_go_together_is_named(datasets, folder, tokenizer_file):
    small, by_bytes, file = str(datasets / "small"), str(datasets / "bytes"), str(tokenizer_file)
    for data, tokenizer, seq, vocab, field, says in (
        (small, "bytes", 32, 400, "tokenizer", "small was made with tokenizer.json"),
        (by_bytes, file, 32, 400, "tokenizer", "bytes was made with bytes"),
        (f"1:{by_bytes},1:{small}", None, 32, 400, "tokenizer", "small was made with"),
        (f"1:{folder},1:{small}", None, 32, 400, "tokenizer", "small was made with"),
        (small, None, 16, 400, "seq", "was cut for sequences of 32, not 16"),
        (small, None, 32, 256, "tokenizer", "has 400 tokens and the model 256"),
        (str(folder), file, 32, 399, "tokenizer", "has 400 tokens and the model 399"),
        (f"1:{folder},1:{folder}/none", None, 32, 256, "data", "none does not exist"),
    ):
        with pytest.raises(InputError, match=says) as caught:
            load_corpus(data, tokenizer, seq, vocab)
        assert caught.value.field == field


@pytest.mark.parametrize(
    "data", ["1e308:{0},1e308:{0}", "1:{0},1e-300:{0}", "5e-324:{0},5e-324:{0}"]
)
def test_the_largest_and_smallest_weights_end_in_shares_or_are_named(folder, data):
    try:
        parts = load_corpus(data.format(folder), None, 32, 256).parts
    except InputError as error:
        assert "would have less than one sample in 1,000,000,000" in error.problem
    else:
        assert [part.weight for part in parts] == [0.5, 0.5]


def test_a_mixture_may_have_more_parts_than_a_name_has_characters(tmp_path):
    text = tmp_path / "a.txt"
    text.write_text("a text, " * 1000)
    corpus = load_corpus(",".join([f"1:{text}"] * 300), None, 16, 256)
    assert len(corpus.parts) == 300
    assert corpus.listing.read["text"].files == 300
    assert corpus.describe() == "mixture of 300: read 300 text (2.4 MB)"


def test_what_was_read_is_the_same_of_a_text_and_of_its_dataset(tmp_path):
    folder = tmp_path / "text"
    folder.mkdir()
    (folder / "a.jsonl").write_text('{"text": "a text, ' + "and more, " * 400 + '"}\n{"text": 0}\n')
    (folder / ".hidden").write_text("x")
    write(scan(str(folder), "skip"), load_tokenizer("bytes"), 16, tmp_path / "out")
    text = load_corpus(str(folder), None, 16, 256, "skip")
    dataset = load_corpus(str(tmp_path / "out"), None, 16, 256)
    assert text.listing == dataset.listing
    assert text.to_json()["parts"][0]["left_out"]["hidden"]["files"] == 1
    assert text.to_json()["parts"][0]["bad_lines"] == 1


@pytest.mark.parametrize("data", ["", "\0", "x" * 300, "0.5:" + "x" * 300])
def test_a_path_that_cannot_be_is_named(data):
    for given in ((data, None), (None, data)):
        with pytest.raises(InputError) as caught:
            load_corpus(*given, 32, 256)
        assert len(str(caught.value)) < 500


def test_a_part_of_a_dataset_is_no_text(datasets, tmp_path):
    with pytest.raises(
        InputError, match=r"is the manifest of a tokenised dataset; give its folder"
    ):
        load_corpus(str(datasets / "bytes" / "dataset.json"), None, 32, 256)
    shutil.copytree(datasets / "bytes", tmp_path / "cut")
    (tmp_path / "cut" / "dataset.json").unlink()
    with pytest.raises(InputError, match=r"no dataset\.json: unfinished"):
        load_corpus(str(tmp_path / "cut"), None, 32, 256)
    with pytest.raises(InputError, match="tokenised shard") as caught:
        load_corpus(str(datasets), None, 32, 256)  # the folder above
    assert "give the folder of its dataset.json itself" in str(caught.value)


def test_a_file_of_rows_may_be_named_as_the_manifest_is(tmp_path):
    (tmp_path / "dataset.json").write_text(json.dumps([{"text": "a text, " * 1000}]))
    assert load_corpus(str(tmp_path), None, 16, 256).listing.read["json"].files == 1
