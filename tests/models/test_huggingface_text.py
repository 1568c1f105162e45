"""The tokenizer of an exported model numbers text as the run's did."""

import json

import tokenizers
from hypothesis import given
from hypothesis import strategies as st

from exajax.models.huggingface.tokenizer_files import TextForm
from exajax.train.data.tokenizer import ByteTokenizer

BYTES = tokenizers.Tokenizer.from_buffer(TextForm.of_bytes(0).tokenizer_json)


@given(st.text())
def test_bytes_are_numbered_as_they_are(text):
    (ours,) = ByteTokenizer().encode([text])
    assert BYTES.encode(text).ids == ours.tolist()
    assert BYTES.decode(ours.tolist(), skip_special_tokens=False) == text


def test_all_256_bytes_have_a_number():
    assert sorted(BYTES.get_vocab().values()) == list(range(256))
    assert BYTES.decode(list(range(128))).encode() == bytes(range(128))
    assert BYTES.encode("Ā <|endoftext|> \0").ids == list("Ā <|endoftext|> \0".encode())


def test_the_end_of_a_document_is_named_where_it_has_a_name():
    files = TextForm(b"{}", 3, "</s>").files(seq=64)
    assert json.loads(files["tokenizer_config.json"])["eos_token"] == "</s>"
    assert json.loads(files["special_tokens_map.json"]) == {"eos_token": "</s>"}
    assert json.loads(files["generation_config.json"])["eos_token_id"] == 3
    files = TextForm.of_bytes(0).files(seq=64)
    assert "eos_token" not in json.loads(files["tokenizer_config.json"])
    assert json.loads(files["tokenizer_config.json"])["model_max_length"] == 64
    assert json.loads(files["generation_config.json"])["eos_token_id"] == 0
