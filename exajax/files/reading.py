"""JSON and TOML read within bounds: size, nesting, digits and length of text.

Whatever a file contains, reading it ends in plain values or in one `Malformed`. Numbers are finite
and integers fit 64 bits, and callers may rely on both.
"""

import errno
import json
import math
import stat
import tomllib
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

from exajax.errors import InputError

MOST_BYTES = 1 << 20
"""Size limit of a file that a person writes by hand; readers of larger kinds pass their own."""

MOST_NESTING = 32
"""Limit on the depth of nested lists and tables."""

MOST_CHARACTERS = 100_000
"""Limit on the length of a text, key or value."""

MOST_SHOWN = 60
"""Characters of a wrong value that an error quotes."""


class Malformed(ValueError):  # noqa: N818 - reads as a predicate of the file
    """The content of a file does not fit its schema.

    Args:
        where: the field, such as `shards[3].bytes`; empty for the whole file.
        problem: what is wrong with it.
        fix: what to write instead, as an imperative.
    """

    def __init__(self, where: str, problem: str, fix: str) -> None:
        self.where, self.problem, self.fix = where, problem, fix
        super().__init__(" ".join(f"{where} {problem}".split()))

    def within(self, field: str, path: Path) -> InputError:
        """The same error for the user, with the option and the file that it is about.

        Args:
            field: the option that the file was given for.
            path: the file.
        """
        return InputError(field, f"{shown_path(path)}: {self}", self.fix)


def shown(value: Any) -> str:
    """A value as an error quotes it: on one line, at most `MOST_SHOWN` characters."""
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 10**18:
        return "a number of more than 18 digits"
    try:
        text = repr(value)
    except (RecursionError, ValueError):  # nested without end, or with a number of 4,300 digits
        return f"a {type(value).__name__}"
    return text if len(text) <= MOST_SHOWN else text[: MOST_SHOWN - 3] + "..."


def shown_path(path: Path) -> str:
    """A path as an error quotes it: printable, at most some 200 characters."""
    text = str(path).encode("utf8", "backslashreplace").decode()
    text = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
    return text if len(text) <= 200 else f"{text[:90]}...{text[-90:]}"


def is_folder(path: Path) -> bool:
    """Whether a path is a folder.

    Raises:
        Malformed: the path is malformed or too long, or lies in a folder without permission.
    """
    try:
        return stat.S_ISDIR(path.stat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise Malformed("", f"cannot be read: {error.strerror}", "give another path") from error
    except ValueError as error:  # NUL, or half of a surrogate pair
        raise Malformed("", "is no path", "give another path") from error


def read_bytes(path: Path, most_bytes: int = MOST_BYTES) -> bytes:
    """The content of a file of at most `most_bytes`.

    Raises:
        Malformed: the path is not a file, cannot be read, or the file is larger.
    """
    try:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, "it is a folder")
        if not stat.S_ISREG(path.stat().st_mode):  # a pipe, whose reader may wait for ever
            raise OSError(errno.EINVAL, "it is a pipe or a device")
        with path.open("rb") as file:
            content = file.read(most_bytes + 1)
    except OSError as error:
        raise Malformed("", f"cannot be read: {error.strerror}", "give a readable file") from error
    except ValueError as error:  # NUL, or half of a surrogate pair, in the path
        raise Malformed("", "is no path", "give a readable file") from error
    if len(content) > most_bytes:
        raise Malformed("", f"is larger than {most_bytes} bytes", "give a file of the right kind")
    return content


def parse_json(content: bytes | str) -> Any:
    """The value of a JSON text.

    Raises:
        Malformed: the text is not JSON in UTF-8, or exceeds a limit of this module.
    """
    return _parse_bounded(json.loads, content, "JSON")


def parse_toml(content: bytes | str) -> dict[str, Any]:
    """The table of a TOML text.

    Raises:
        Malformed: the text is not TOML in UTF-8, or exceeds a limit of this module.
    """
    table: dict[str, Any] = _parse_bounded(
        lambda text: tomllib.loads(text.replace("\r\n", "\n")), content, "TOML"
    )
    return table


def read_json(path: Path, most_bytes: int = MOST_BYTES) -> Any:
    """The value in a JSON file; raises `Malformed` as `read_bytes` and `parse_json` do."""
    return parse_json(read_bytes(path, most_bytes))


def read_toml(path: Path, most_bytes: int = MOST_BYTES) -> dict[str, Any]:
    """The table in a TOML file; raises `Malformed` as `read_bytes` and `parse_toml` do."""
    return parse_toml(read_bytes(path, most_bytes))


def relative_path(name: str) -> PurePosixPath:
    """The path by which a file refers to another one in its own folder, checked to stay in there.

    Raises:
        Malformed: the path leads out of the folder, or is malformed.
    """
    path = PurePosixPath(name)
    if not name or not name.isprintable() or len(name) > 255:
        raise Malformed("", f"{shown(name)} is no name of a file", "give a name in the same folder")
    if path.is_absolute() or ".." in path.parts or "\\" in name:
        raise Malformed("", f"{shown(name)} leads out of its folder", "give a name inside of it")
    return path


def _parse_bounded(parse: Callable[[str], Any], content: bytes | str, kind: str) -> Any:
    fix = f"give {kind} in UTF-8"
    try:
        text = content if isinstance(content, str) else content.decode("utf-8-sig")
        value = parse(text)
    except RecursionError:
        raise Malformed("", f"is nested deeper than {MOST_NESTING}", "nest it less") from None
    except UnicodeDecodeError as error:
        raise Malformed("", f"is not text in UTF-8: byte {error.start}", fix) from error
    except ValueError as error:
        if "set_int_max_str_digits" in str(error):
            raise Malformed("", "holds a number of thousands of digits", "shorten it") from error
        raise Malformed("", f"is not {kind}: {_first_line(error)}", fix) from error
    _check_bounds(value)
    return value


def _check_bounds(value: Any) -> None:
    """Checks nesting, numbers and texts of a parsed value, without recursion."""
    pending: list[tuple[Any, str, int]] = [(value, "", 0)]
    while pending:
        node, where, depth = pending.pop()
        if isinstance(node, str):
            _check_text(node, where)
        elif isinstance(node, float) and not math.isfinite(node):  # `nan`, or `1e400`
            raise Malformed(where, f"is {node}, not a finite number", "give a finite number")
        elif isinstance(node, int) and not -(2**63) <= node < 2**63:
            raise Malformed(where, "does not fit 64 bits", "give a smaller number")
        elif isinstance(node, (dict, list)):
            if depth >= MOST_NESTING:
                raise Malformed(where, f"is nested deeper than {MOST_NESTING}", "nest it less")
            if isinstance(node, list):
                pending += [(item, f"{where}[{i}]", depth + 1) for i, item in enumerate(node)]
                continue
            for key, item in node.items():
                _check_text(key, where)
                pending.append((item, f"{where}.{key}" if where else key, depth + 1))


def _check_text(text: str, where: str) -> None:
    if len(text) > MOST_CHARACTERS:
        raise Malformed(where, f"is longer than {MOST_CHARACTERS} characters", "shorten it")
    try:
        text.encode()
    except UnicodeEncodeError:  # "\ud800", which JSON may spell and UTF-8 cannot
        raise Malformed(
            where, f"{shown(text)} holds half of a surrogate pair", "give whole characters"
        ) from None


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:120]
