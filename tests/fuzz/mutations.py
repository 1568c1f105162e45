"""Plain values with something wrong in them, and bytes as a disk or a crash leaves them."""

import copy
import json
from typing import Any

from hypothesis import strategies as st

HOSTILE: list[Any] = [
    *(None, True, False, 0, -1, 2**31, 2**63, 10**30, 0.5, -0.0, 1e308, 5e-324),
    *("", " ", "\0", "\ud800", "../../x", "/etc/passwd", "NaN", "1", "$\\frac$", "x" * 1000),
    *([], {}, [[]], [None], {"": None}, ["a", 1], {"a": {"a": {"a": 1}}}),
]
"""Values that a field does not expect, one of each kind."""


def paths(value: Any) -> list[tuple[Any, ...]]:
    """Returns the path of every value within a plain value, that of the whole first."""
    found: list[tuple[Any, ...]] = [()]
    children = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    for key, child in children:
        found += [(key, *path) for path in paths(child)]
    return found


def put(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    """Returns a copy of a plain value with another one at a path."""
    if not path:
        return new
    whole = copy.deepcopy(value)
    at = whole
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = new
    return whole


@st.composite
def mutated(draw: st.DrawFn, value: Any) -> Any:
    """Draws a copy of a plain value: a field replaced, removed or added, once or twice."""
    for _ in range(draw(st.integers(1, 2))):
        path = draw(st.sampled_from(paths(value)))
        kind = draw(st.sampled_from(("replace", "remove", "add")))
        if kind == "remove" and path:
            value = copy.deepcopy(value)
            at = value
            for key in path[:-1]:
                at = at[key]
            del at[path[-1]]
        elif kind == "add":
            value = put(value, path, {"unknown": draw(st.sampled_from(HOSTILE))})
        else:
            value = put(value, path, draw(st.sampled_from(HOSTILE)))
    return value


def as_json(value: Any) -> bytes:
    """Returns the JSON of a plain value, with `NaN` and halves of surrogate pairs as they are."""
    return json.dumps(value).encode()


@st.composite
def damaged(draw: st.DrawFn, content: bytes) -> bytes:
    """Draws bytes cut short, with other bits, with a part missing, or none of it left."""
    kind = draw(st.sampled_from(("cut", "flip", "hole", "zeros", "twice", "other")))
    at = draw(st.integers(0, max(len(content) - 1, 0)))
    if kind == "cut":
        return content[:at]
    if kind == "flip" and content:
        return (
            content[:at] + bytes([content[at] ^ 1 << draw(st.integers(0, 7))]) + content[at + 1 :]
        )
    if kind == "hole":
        return content[:at] + content[at + draw(st.integers(0, 200)) :]
    if kind == "zeros":
        return content[:at] + b"\0" * (len(content) - at)
    if kind == "twice":
        return content[:at] + content
    return draw(st.binary(max_size=50))
