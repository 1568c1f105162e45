"""Files of tokenizers: their special token ends documents, whatever text spells; or an error."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from tokenizers import models, pre_tokenizers

from exajax import InputError
from exajax.train.data.tokenizer import FileTokenizer, load_tokenizer

Model = models.WordLevel | models.Unigram | models.BPE

ALPHABET = "<>/seoabt "


def saved(folder: Path, model: Any, special: dict[str, bool]) -> Path:
    """Writes a tokenizer with added tokens, each special or not."""
    made = tokenizers.Tokenizer(model)
    if isinstance(model, models.WordLevel):
        made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    for token, is_special in special.items():
        made.add_tokens([tokenizers.AddedToken(token, special=is_special, normalized=False)])
    path = folder / "tokenizer.json"
    made.save(str(path))
    return path


def letters() -> models.BPE:
    return models.BPE({letter: n for n, letter in enumerate(ALPHABET)}, [])


def words() -> models.WordLevel:
    vocabulary = {"<unk>": 0, "a": 1, "</s>": 2, "<eos>": 3}
    return models.WordLevel(vocabulary, unk_token="<unk>")


def pieces() -> models.Unigram:
    found = [("<unk>", 0.0), ("</s>", 0.0), *((letter, -1.0) for letter in ALPHABET)]
    return models.Unigram(found, unk_id=0)


@pytest.mark.parametrize("model", [letters, words, pieces])
@pytest.mark.parametrize("text", ["a </s> b", "</s>", "</s></s>", "<eos> </s> a <eos>"])
def test_text_that_spells_the_end_token_never_ends_a_document(
    tmp_path: Path, model: Callable[[], Model], text: str
) -> None:
    tokenizer = load_tokenizer(str(saved(tmp_path, model(), {"</s>": True, "<eos>": False})))
    assert isinstance(tokenizer, FileTokenizer)
    assert tokenizer.model.id_to_token(tokenizer.end_of_document) == "</s>"
    first, ids, last = tokenizer.encode(["a", text, "a"])
    assert tokenizer.end_of_document not in ids
    assert len(ids)
    np.testing.assert_array_equal(first, last)


def test_an_ordinary_token_of_that_name_is_not_the_end(tmp_path: Path) -> None:
    path = saved(tmp_path, letters(), {"</s>": False, "<eos>": True})
    tokenizer = load_tokenizer(str(path))
    assert isinstance(tokenizer, FileTokenizer)
    assert tokenizer.model.id_to_token(tokenizer.end_of_document) == "<eos>"
    path = saved(tmp_path, letters(), {"</s>": False})
    with pytest.raises(InputError, match=r"its </s> is an ordinary one, which any text may hold"):
        load_tokenizer(str(path))


def test_a_long_word_that_is_unknown_is_cut_until_it_is_no_end(tmp_path: Path) -> None:
    model = models.WordLevel({"a": 1, "</s>": 0}, unk_token="</s>")
    tokenizer = load_tokenizer(str(saved(tmp_path, model, {"</s>": True})))
    with pytest.raises(InputError, match="its end token '</s>' is also what 'x' becomes"):
        tokenizer.encode(["x" * 100_000])


def test_chance_has_no_part_in_numbering_a_text(tmp_path: Path) -> None:
    merges = [("a", "b"), ("ab", "o")]
    vocabulary = {letter: n for n, letter in enumerate([*ALPHABET, "ab", "abo"])}
    model = models.BPE(vocabulary, merges, dropout=0.5)
    tokenizer = load_tokenizer(str(saved(tmp_path, model, {"</s>": True})))
    assert all(len(ids) == 100 for ids in tokenizer.encode(["abo" * 100] * 20))


def replaced(**changes: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda content: content | changes


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda content: [], "is not a tokenizer"),
        (replaced(model=None), "is not a tokenizer"),
        (replaced(model={"type": "BPE", "vocab": {"a": -1}, "merges": []}), "is not a tokenizer"),
        (replaced(model={"type": "Unigram", "vocab": []}), "is not a tokenizer"),
        (
            replaced(model={"type": "WordLevel", "vocab": {"b": 0}, "unk_token": "c"}),
            "is not a tokenizer",
        ),
        (replaced(normalizer={"type": "Precompiled", "precompiled_charsmap": "AAAA"}), "charsmap"),
        (replaced(added_tokens=[]), "has no token that ends a document"),
        (replaced(added_tokens=[{"id": 1}]), "is not a tokenizer"),
        (
            replaced(model={"type": "BPE", "vocab": {"a": 2**32 - 1}, "merges": []}),
            "has a token of number",
        ),
    ],
)
def test_a_damaged_tokenizer_is_one_line(
    tmp_path: Path, change: Callable[[Any], Any], says: str
) -> None:
    path = saved(tmp_path, letters(), {"</s>": True})
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    with pytest.raises(InputError, match=says) as caught:
        load_tokenizer(str(path))
    assert caught.value.field == "tokenizer"
    assert str(path) in str(caught.value)
    assert len(str(caught.value)) < 600


def test_a_panic_of_the_library_prints_nothing(tmp_path: Path) -> None:
    path = saved(tmp_path, letters(), {"</s>": True})
    content = json.loads(path.read_text())
    content["normalizer"] = {"type": "Precompiled", "precompiled_charsmap": "AAAA"}
    path.write_text(json.dumps(content))
    tell = """
import sys
from exajax import InputError
from exajax.train.data.tokenizer import load_tokenizer
try:
    load_tokenizer(sys.argv[1])
except InputError:
    print("named", file=sys.stderr)
"""
    result = subprocess.run([sys.executable, "-c", tell, str(path)], capture_output=True, text=True)
    assert result.stderr.splitlines()[-1] == "named"
    assert "panicked" not in result.stderr


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is not a tokenizer"),
        (b"\xff\xfe", "is not a tokenizer"),
        (b"[" * 100_000, "is not a tokenizer"),
        (b" " * ((64 << 20) + 1), "is larger than 67108864 bytes"),
    ],
)
def test_a_file_that_is_no_tokenizer_is_named(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_bytes(content)
    for given in (path, tmp_path):
        with pytest.raises(InputError, match=says if given == path else "it is a folder"):
            load_tokenizer(str(given))


def test_a_file_that_pads_to_more_than_the_memory_does_not(tmp_path: Path) -> None:
    path = saved(tmp_path, letters(), {"</s>": True})
    content = json.loads(path.read_text())
    content["padding"] = {
        "strategy": {"Fixed": 10**12}, "direction": "Right", "pad_to_multiple_of": None,
        "pad_id": 0, "pad_type_id": 0, "pad_token": "a",
    }  # fmt: skip
    path.write_text(json.dumps(content))
    assert len(load_tokenizer(str(path)).encode(["a b"])[0]) == 3
