"""Rows of JSON that hold a document each: lines of a `.jsonl`, or items of a `.json` array."""

import itertools
import re
from collections.abc import Iterable, Iterator
from typing import Any, BinaryIO

from exajax.files.reading import Malformed
from exajax.files.schema import Record, decode_json

MOST_ROW_BYTES = 16 << 20
"""Largest row; the longest books have some 10 MB."""

ROWS_LOOKED_AT = 100
"""Rows of a `.json` file that are searched for texts, before it is taken for something else."""

READ_BYTES = 1 << 20
"""Of an array, read at once."""

Row = tuple[str, bytes | Malformed]
"""Where it stands, such as `line 7`, and its content, or why it has none."""


class _Document(Record):
    """A row; its other fields may be anything."""

    text: str


class _WithText(Record):
    """A row that was meant as a document, whatever its text is."""

    text: Any


def text_of(row: bytes | Malformed) -> str:
    """Returns the text of a row.

    Raises:
        Malformed: it is not an object with a "text", or the text holds a NUL character.
    """
    if isinstance(row, Malformed):
        raise row
    text = decode_json(_Document, row).text
    if "\0" in text:
        raise Malformed("text", "holds a NUL character", "leave it out")
    return text


def lines(file: BinaryIO) -> Iterator[Row]:
    """Yields the lines of a file that are not blank."""
    for number in itertools.count(1):
        line = file.readline(MOST_ROW_BYTES + 1)
        if not line:
            return
        place = f"line {number}"
        if len(line) > MOST_ROW_BYTES:
            while line and not line.endswith(b"\n"):
                line = file.readline(READ_BYTES)
            yield place, _too_long()
            continue
        if number == 1:
            line = line.removeprefix(b"\xef\xbb\xbf")
        if line.strip():
            yield place, line


_TOKEN = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"|["{}\[\],]', re.DOTALL)
"""A whole text, the begin of one that is cut, or what stands between values."""


def items(file: BinaryIO) -> Iterator[Row]:
    """Yields the items of a file that is one JSON array.

    Raises:
        Malformed: the array does not end, or something follows it.
    """
    buffer, at, begin, depth, number = b"", 0, 0, 0, 0
    while more := file.read(READ_BYTES):
        buffer, at, begin = buffer[begin:] + more, at - begin, 0
        for token in _TOKEN.finditer(buffer, at):
            mark, at = token[0], token.end()
            if mark == b'"':  # its end is not read yet
                at = token.start()
                break
            if mark in b"{[":
                begin = token.end() if depth == 0 else begin
                depth += 1
            elif mark in b"}]":
                depth -= 1
            if depth == 0 and mark != b"]":
                raise Malformed("", f"ends its array with {mark.decode()}", "give one array")
            if depth == 0 or (depth == 1 and mark == b","):
                item = buffer[begin : token.start()]
                number += 1
                if item.strip() or mark == b",":
                    yield f"item {number}", item if len(item) <= MOST_ROW_BYTES else _too_long()
                begin = token.end()
            if depth == 0:
                _check_nothing_follows(itertools.chain([buffer[at:]], _rest(file)))
                return
        if len(buffer) - begin > MOST_ROW_BYTES + READ_BYTES:
            raise _too_long()
    raise Malformed("", f"ends within item {number + 1}", "give the whole file")


def has_texts(rows: Iterable[Row]) -> bool:
    """Returns whether any of the first rows is an object with a "text", even of a wrong type."""
    try:
        return any(
            isinstance(row, bytes) and _is_with_text(row)
            for _, row in itertools.islice(rows, ROWS_LOOKED_AT)
        )
    except Malformed:  # the array does not go on as one
        return False


def _is_with_text(row: bytes) -> bool:
    try:
        decode_json(_WithText, row)
    except Malformed:
        return False
    return True


def _check_nothing_follows(rest: Iterable[bytes]) -> None:
    if any(part.strip() for part in rest):
        raise Malformed("", "goes on behind the end of its array", "give one array")


def _rest(file: BinaryIO) -> Iterator[bytes]:
    while more := file.read(READ_BYTES):
        yield more


def _too_long() -> Malformed:
    return Malformed("", f"is longer than {MOST_ROW_BYTES >> 20} MiB", "divide it")
