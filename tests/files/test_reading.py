"""Files are read within bounds, and every error names what is wrong and what to do."""

import json
import os
import re
from pathlib import Path
from typing import Annotated, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field

from exajax.errors import InputError
from exajax.files.reading import (
    Malformed,
    is_folder,
    parse_json,
    parse_toml,
    read_bytes,
    relative_path,
)
from exajax.files.schema import Items, Name, Record, Schema, Text, checked, load


class Part(Schema):
    size: Annotated[int, Field(ge=1, le=10)]


class Kind(Schema):
    name: Name
    title: Text = "x"
    rate: Annotated[float, Field(gt=0)] = 1.0
    parts: Items[Part] = ()


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("NaN", "not a finite number"),
        ("[1, -Infinity]", "not a finite number"),
        ("1e400", "not a finite number"),
        ("9" * 5000, "a number of thousands of digits"),
        ("9223372036854775808", "64 bits"),
        ("[" * 100_000, "nested"),
        ("[" * 40 + "]" * 40, "nested"),
        (r'{"a": "\ud800"}', "surrogate"),
        (r'{"\ud800": 1}', "surrogate"),
        ('"' + "x" * 100_001 + '"', "longer than"),
        ("{", "not JSON"),
        (b"\xff", "UTF-8"),
        ("", "not JSON"),
    ],
)
def test_json_out_of_bounds_is_malformed(text: str | bytes, problem: str) -> None:
    with pytest.raises(Malformed, match=problem):
        parse_json(text)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a = nan", "a is nan, not a finite number"),
        ("[a]\nb = [1.0, inf]", r"a.b\[1\] is inf, not a finite number"),
        ("a = -inf", "not a finite number"),
        ("a = 1e999", "not a finite number"),
        ("a = " + "9" * 5000, "a number of thousands of digits"),
        ("a = 9223372036854775808", "64 bits"),
        ("a = " + "[" * 5000, "nested"),
        (".".join("a" * 50) + " = 1", "nested"),
        ("a", "not TOML"),
        (b"a = '\xff'", "UTF-8"),
    ],
)
def test_toml_out_of_bounds_is_malformed(text: str | bytes, problem: str) -> None:
    with pytest.raises(Malformed, match=problem):
        parse_toml(text)


def test_a_byte_order_mark_is_no_part_of_the_text() -> None:
    assert parse_json(b'\xef\xbb\xbf{"a": 1}') == {"a": 1}
    assert parse_toml(b"\xef\xbb\xbfa = 1\r\n") == {"a": 1}


@given(st.binary() | st.text())
def test_any_bytes_end_in_a_value_or_in_malformed(content: bytes | str) -> None:
    for parse in (parse_json, parse_toml):
        try:
            json.dumps(parse(content), allow_nan=False, default=str)
        except Malformed as error:
            assert "\n" not in str(error)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({}, "name is missing"),
        ({"name": 3}, "name is 3; give a text"),
        ({"name": "../x"}, r"name is '../x'; give a name of letters, digits"),
        ({"name": "x", "nam": 1}, "nam is unknown; did you mean 'name'?"),
        ({"name": "x", "title": "a\nb"}, r"title 'a\\nb' is empty, or has characters"),
        ({"name": "x", "rate": "1"}, "rate is '1'; give a number"),
        ({"name": "x", "rate": True}, "rate is True; give a number"),
        ({"name": "x", "rate": 0}, "rate is 0; give more than 0"),
        ({"name": "x", "parts": [{"size": 1}, {"size": 11}]}, r"parts\[1\].size is 11; give at mo"),
        ({"name": "x", "parts": [{"size": 1.5}]}, r"parts\[0\].size is 1.5; give a whole number"),
        ({"name": "x", "parts": 1}, "parts is 1; give a list"),
        ([], r"is \[\]; give a table"),
    ],
)
def test_a_wrong_field_is_named_with_its_fix(value: Any, message: str) -> None:
    with pytest.raises(Malformed) as raised:
        checked(Kind, value)
    assert re.search(message, f"{raised.value}; {raised.value.fix}".strip())


def test_a_right_value_passes_as_it_stands() -> None:
    kind = checked(Kind, {"name": "x", "rate": 2, "parts": [{"size": 1}]})
    assert kind == Kind(name="x", rate=2.0, parts=(Part(size=1),))


def test_records_of_later_versions_are_read() -> None:
    class Line(Record):
        step: int

    assert checked(Line, {"step": 1, "new": 2}) == Line(step=1)


def test_a_file_is_named_with_flag_field_and_fix(tmp_path: Path) -> None:
    file = tmp_path / "kind.toml"
    file.write_text("name = 'x'\nrate = -1\n")
    with pytest.raises(InputError, match=r"kind: .*kind.toml: rate is -1; give more than 0"):
        load(file, Kind, "--kind")
    with pytest.raises(InputError, match="is a folder"):
        load(tmp_path, Kind, "--kind")
    with pytest.raises(InputError, match="No such file"):
        load(tmp_path / "none", Kind, "--kind")
    with pytest.raises(InputError, match="File name too long"):
        load(tmp_path / ("x" * 300), Kind, "--kind")
    with pytest.raises(InputError, match="is no path"):
        load(Path("\0"), Kind, "--kind")


def test_what_is_no_folder_is_not_one(tmp_path: Path) -> None:
    assert is_folder(tmp_path)
    assert not is_folder(tmp_path / "none")
    (tmp_path / "file").touch()
    assert not is_folder(tmp_path / "file")
    assert not is_folder(tmp_path / "file" / "below")


@pytest.mark.parametrize(
    ("name", "problem"),
    [("x" * 300, "File name too long"), ("a\0b", "no path"), ("\ud800", "path")],
)
def test_what_cannot_be_a_folder_says_why(name: str, problem: str) -> None:
    with pytest.raises(Malformed, match=problem):
        is_folder(Path(name))


def test_a_pipe_is_refused_instead_of_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.toml")
    with pytest.raises(Malformed, match="a pipe or a device"):
        read_bytes(tmp_path / "pipe.toml")


def test_a_device_is_refused() -> None:
    with pytest.raises(Malformed, match="a pipe or a device"):
        read_bytes(Path("/dev/zero"))


def test_a_file_that_is_too_large_is_not_read_whole(tmp_path: Path) -> None:
    with (tmp_path / "large.toml").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(Malformed, match="larger than 1000 bytes"):
        read_bytes(tmp_path / "large.toml", most_bytes=1000)


@pytest.mark.parametrize(
    "name", ["", "/etc/passwd", "../x", "a/../../x", "a\\b", "a\0b", "x" * 300]
)
def test_paths_from_files_stay_inside(name: str) -> None:
    with pytest.raises(Malformed):
        relative_path(name)


def test_a_path_inside_is_itself() -> None:
    assert (
        str(relative_path("model-00001-of-00002.safetensors")) == "model-00001-of-00002.safetensors"
    )
