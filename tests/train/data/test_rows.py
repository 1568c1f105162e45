"""Rows of JSON: each is a document, or named with its place, or skipped and counted."""

import io
import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exajax import InputError
from exajax.files.reading import Malformed
from exajax.train.data import rows
from exajax.train.data.documents import pieces, scan

GOOD = b'{"text": "good"}\n'


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (b"no json", "is not JSON"),
        (b'{"body": "a"}', "text is missing"),
        (b'"text"', "is 'text'"),
        (b"[1]", r"is \[1\]"),
        (b'{"text": null}', "text is None"),
        (b'{"text": 7}', "text is 7"),
        (b'{"text": NaN}', "text is nan"),
        (b'{"text": ["a"]}', "text is"),
        (b'{"text": "a\\u0000"}', "NUL"),
        (b'{"text": "a\x00"}', "is not JSON"),
        (rb'{"text": "\ud800 half"}', "half of a surrogate pair"),
        (rb'{"text": "a", "more": "\udc00"}', "half of a surrogate pair"),
        (b'{"text": "\xff"}', "is not JSON"),
        (b'{"text": "a"} {"text": "b"}', "is not JSON"),
        (b'{"text": "a"', "is not JSON"),
        (b'{"text": "a", "n": ' + b"9" * 5000 + b"}", "is not JSON"),
        (b'{"text": "a", "n": ' + b"[" * 100_000 + b"}", "is not JSON"),
        (b'{"text": "' + b"x" * (17 << 20) + b'"}', "is longer than 16 MiB"),
    ],
)
def test_a_line_without_a_text_is_named_or_skipped_and_counted(
    tmp_path: Path, line: bytes, says: str
) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(GOOD + b"\n" + line + b"\n" + GOOD)
    with pytest.raises(InputError, match=rf"line 3 of .*a\.jsonl: .*{says}") as caught:
        list(pieces(scan(str(path))))
    assert caught.value.field == "data"
    assert "`bad_lines` skip" in caught.value.fix
    assert len(str(caught.value)) < 500
    source = scan(str(path), "skip")
    for _ in range(2):  # a source may be read again
        assert list(pieces(source)) == [("good", True)] * 2
        assert source.listing.bad_lines == 1
    assert re.search(says, str(source.listing.first_bad_line))
    assert "skipped 1 bad line, the first line 3 of" in source.listing.describe()


@pytest.mark.parametrize(
    "content",
    [
        b"\xef\xbb\xbf" + GOOD,
        GOOD.replace(b"\n", b"\r\n"),
        b"\n \n" + GOOD + b"\n\n",
        GOOD.strip(),
        b'{"id": 18446744073709551616, "x": NaN, "text": "good"}',
        b'{"id": [[[[{"text": 1}]]]], "text": "good"}',
    ],
)
@pytest.mark.parametrize("name", ["a.jsonl", "a.ndjson", "a.json"])
def test_what_other_fields_and_line_ends_are_does_not_matter(
    tmp_path: Path, content: bytes, name: str
) -> None:
    (tmp_path / name).write_bytes(content)
    assert list(pieces(scan(str(tmp_path)))) == [("good", True)]


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfone")
    assert list(pieces(scan(str(tmp_path)))) == [("one", True)]


def test_where_every_line_is_skipped_the_first_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"prompt": "a"}\n' * 3)
    with pytest.raises(InputError, match=r"holds no document: line 1 of .* text is missing"):
        list(pieces(scan(str(tmp_path), "skip")))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(
    st.lists(JSON, max_size=8), st.sampled_from([None, 1, 2]), st.booleans(), st.integers(1, 300)
)
def test_the_items_of_an_array_are_those_of_json_however_it_is_read(
    values: list[object], indent: int | None, plain: bool, read_bytes: int
) -> None:
    content = json.dumps(values, indent=indent, ensure_ascii=plain).encode("utf8", "replace")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rows, "READ_BYTES", read_bytes)
        found = list(rows.items(io.BytesIO(content)))
    assert [json.loads(item) for _, item in found if isinstance(item, bytes)] == json.loads(content)
    assert [place for place, _ in found] == [f"item {i + 1}" for i in range(len(values))]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ('[{"text": "a"}, {"text": "b"', "ends within item 2"),
        ('[{"text": "a"}, {"text": "b', "ends within item 2"),
        ('[{"text": "a"}, {"text": "b"}', "ends within item 2"),
        ('[{"text": "a"}] [', "goes on behind the end"),
        ('[{"text": "a"}, {"text": "b"}}', "ends its array with }"),
    ],
)
def test_an_array_that_does_not_end_is_named(tmp_path: Path, content: str, says: str) -> None:
    (tmp_path / "a.json").write_text(content)
    for bad_lines in ("refuse", "skip"):
        with pytest.raises(InputError, match=rf"a\.json: {says}"):
            list(pieces(scan(str(tmp_path), bad_lines)))


def test_an_item_without_a_text_is_named_or_skipped(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('[{"text": null}, {"text": "a"}, 7, {"text": "b"}]')
    with pytest.raises(InputError, match=r"item 1 of .*a\.json: text is None"):
        list(pieces(scan(str(tmp_path))))
    source = scan(str(tmp_path), "skip")
    assert list(pieces(source)) == [("a", True), ("b", True)]
    assert source.listing.bad_lines == 2


def test_an_item_without_an_end_is_not_read_into_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "MOST_ROW_BYTES", 1 << 16)
    monkeypatch.setattr(rows, "READ_BYTES", 1 << 12)
    file = io.BytesIO(b'[{"text": "' + b"x" * (1 << 20))
    with pytest.raises(Malformed, match="is longer than"):
        list(rows.items(file))
    assert file.tell() < 1 << 17
