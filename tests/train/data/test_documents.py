import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from exajax import InputError
from exajax.train.data import documents
from exajax.train.data.documents import pieces, scan, tokens
from exajax.train.data.tokenizer import ByteTokenizer, load_tokenizer
from exajax.train.data.windows import deal, split


def stream(path, tokenizer=None):
    tokenizer = tokenizer or ByteTokenizer()
    return np.concatenate(list(tokens(pieces(scan(str(path))), tokenizer)))


def test_every_file_is_a_document_in_the_order_of_the_paths(tmp_path):
    (tmp_path / "b.txt").write_text("second")
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "z.txt").write_text("first")
    (tmp_path / "image.bin").write_bytes(b"\0\1\2")
    (tmp_path / "empty.txt").touch()
    assert bytes(stream(tmp_path)) == b"first\0second\0"


def test_every_line_of_a_jsonl_file_is_a_document(tmp_path):
    lines = [json.dumps({"text": text, "id": 7}) for text in ("one\nline", "ä", "")]
    (tmp_path / "a.jsonl").write_text("\n".join(lines) + "\n\n")
    assert bytes(stream(tmp_path)).decode() == "one\nline\0ä\0\0"


@pytest.mark.parametrize("line", ["no json", '{"body": "a"}', '"text"', '{"text": "a\\u0000"}'])
def test_a_line_without_text_is_named(tmp_path, line):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "good"}\n' + line + "\n")
    with pytest.raises(InputError, match=r"line 2 of .*a\.jsonl"):
        stream(path)


def test_a_long_document_is_read_in_pieces_and_loses_nothing(tmp_path, monkeypatch, tokenizer_file):
    monkeypatch.setattr(documents, "PIECE_CHARACTERS", 1000)
    text = "".join(f"word{i} " for i in range(3000)) + "x" * 5000 + "\r\nnaïve end"
    path = tmp_path / "long.txt"
    path.write_bytes(text.encode())
    read = list(pieces(scan(str(path))))
    assert len(read) > 20
    assert "".join(piece for piece, _ in read) == text
    assert [last for _, last in read] == [False] * (len(read) - 1) + [True]
    tokenizer = load_tokenizer(str(tokenizer_file))
    (whole,) = tokenizer.encode([text])
    *cut, end = stream(path, tokenizer)
    assert end == tokenizer.end_of_document
    assert cut[:5000] == whole.tolist()[:5000]  # cuts before white space leave no trace
    assert tokenizer.decode(np.array(cut)) == text


def test_the_default_text_is_pythons_own_library():
    source = scan(None)
    assert source.size_bytes > 5e6
    assert len(source.files) > 300


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "does not exist"),
        (b"", "is not text: empty"),
        (b"a\0b" * 9999, "is not text: binary"),
        (b"\xff\xfe" * 9999, "is not text: not UTF-8"),
        (b"cut in a character \xc3", "is not text"),
    ],
)
def test_text_that_cannot_be_used_is_named(tmp_path, content, says):
    path = tmp_path / "text"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=says) as caught:
        scan(str(path))
    assert caught.value.field == "data"


@given(st.lists(st.integers(0, 300), min_size=1), st.integers(0, 20_000))
def test_dealing_loses_nothing_and_does_not_depend_on_how_the_stream_comes(lengths, size_bytes):
    whole = np.arange(sum(lengths))
    parts = np.split(whole, np.cumsum(lengths)[:-1])
    dealt = [
        [np.concatenate([ids for h, ids in deal(given_, size_bytes) if h is held] or [whole[:0]])
         for held in (False, True)]
        for given_ in ([whole], parts)
    ]  # fmt: skip
    for once, again in zip(*dealt, strict=True):
        np.testing.assert_array_equal(once, again)
    assert sorted(np.concatenate(dealt[0])) == whole.tolist()


def test_a_twentieth_is_held_out_and_never_trained_on(text):
    train, held_out = split([stream(text)], text.stat().st_size, 96, str(text))
    assert 0.03 < len(held_out.tokens) / text.stat().st_size < 0.07
    rows = held_out.read(np.arange(len(held_out))).astype(np.uint8)
    # The lines are numbered and shorter than this, so it is in one place alone.
    assert not any(bytes(row) in bytes(train.tokens.astype(np.uint8)) for row in rows)


def test_windows_overlap_by_one(text):
    train, _ = split([stream(text)], text.stat().st_size, 32, str(text))
    read = train.read(np.arange(len(train)))
    assert read.shape == ((len(train.tokens) - 1) // 32, 33)
    np.testing.assert_array_equal(read[1:, 0], read[:-1, -1])
    joined = np.concatenate([read[0], *read[1:, 1:]])
    np.testing.assert_array_equal(joined, train.tokens[: len(joined)])


def test_too_little_text_is_named(tmp_path):
    with pytest.raises(InputError, match="too few tokens") as caught:
        split([np.arange(50)], 50, 32, "few.txt")
    assert caught.value.field == "data"
