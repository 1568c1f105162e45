import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from exajax import InputError
from exajax.train.data.tokenizer import ByteTokenizer, load_tokenizer

TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))


@given(TEXT)
def test_bytes_give_the_text_back(text):
    bytes_ = ByteTokenizer()
    (ids,) = bytes_.encode([text])
    assert bytes_.decode(ids) == text
    assert bytes_.end_of_document not in ids


@given(st.lists(TEXT, max_size=4))
def test_a_byte_level_tokenizer_gives_the_text_back(tokenizer_file, texts):
    tokenizer = load_tokenizer(str(tokenizer_file))
    for text, ids in zip(texts, tokenizer.encode(texts), strict=True):
        assert ids.dtype == np.uint16
        assert tokenizer.decode(ids) == text


def test_a_tokenizer_is_what_its_file_says(tokenizer_file):
    tokenizer = load_tokenizer(str(tokenizer_file))
    assert tokenizer.vocab_size == 400
    assert tokenizer.model.id_to_token(tokenizer.end_of_document) == "<|endoftext|>"
    assert len(tokenizer.encode(["many words " * 50])[0]) > 16  # the file says to cut at 16


def test_text_that_spells_the_end_token_does_not_end_a_document(tokenizer_file):
    tokenizer = load_tokenizer(str(tokenizer_file))
    (ids,) = tokenizer.encode(["an <|endoftext|> in the text"])
    assert tokenizer.end_of_document not in ids
    assert tokenizer.decode(ids) == "an <|endoftext|> in the text"


def test_a_tokenizer_that_cannot_be_used_is_named(tmp_path, tokenizer_file):
    endless = json.loads(tokenizer_file.read_text())
    endless["added_tokens"][0]["content"] = "<|nothing|>"
    (tmp_path / "endless.json").write_text(
        json.dumps(endless).replace("<|endoftext|>", "<|nothing|>")
    )
    (tmp_path / "broken.json").write_text("{}")
    for name, says in (
        ("missing.json", "does not exist"),
        ("broken.json", "is not a tokenizer"),
        ("endless.json", "no token that ends a document"),
    ):
        with pytest.raises(InputError, match=says) as caught:
            load_tokenizer(str(tmp_path / name))
        assert caught.value.field == "tokenizer"
