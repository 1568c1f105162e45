"""Figures of programs: each has a value, a unit, what it is about, and a source."""

from dataclasses import dataclass

import pytest

from exajax.files.reading import Malformed, read_toml
from exajax.files.schema import checked
from exajax.machine.programs import PROGRAMS, Entry, Figure, Pair, program_digest


@dataclass(frozen=True)
class Two:
    one: Figure
    both: Pair


ENTRY = {"value": 1.5, "unit": "bytes", "about": "something", "source": "counted"}


def entries(table):
    """The entries of a file; those of a fitted table share its source."""
    for value in table.values():
        if "value" in value:
            yield checked(Entry, value)
        elif "source" not in value:
            yield from entries({key: inner for key, inner in value.items() if key != "bytes"})


@pytest.mark.parametrize("name", ["xla", "torch"])
def test_every_figure_says_what_it_is_and_where_it_is_from(name):
    found = list(entries(read_toml(PROGRAMS / f"{name}.toml")))
    assert len(found) >= 3
    for entry in found:
        assert entry.source.rpartition(" ")[2].startswith("20"), entry  # ends with its date
    assert len(program_digest(name)) == 16


def test_values_are_read_to_the_bit():
    assert checked(Two, {"one": ENTRY, "both": ENTRY | {"value": [1, 0.1]}}) == Two(1.5, (1.0, 0.1))


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"source": ""}, "source"),
        ({"value": "fast"}, "one"),
        ({"value": float("inf")}, "one"),
        ({"value": -1}, "one"),
        ({"unit": 3}, "unit"),
        ({"extra": 1}, "extra"),
    ],
)
def test_what_is_wrong_with_a_figure_is_named(changes, names):
    with pytest.raises(Malformed) as caught:
        checked(Two, {"one": ENTRY | changes, "both": ENTRY | {"value": [1, 2]}})
    assert names in caught.value.where


def test_a_pair_has_two_numbers():
    with pytest.raises(Malformed, match="3 numbers"):
        checked(Two, {"one": ENTRY, "both": ENTRY | {"value": [1, 2, 3]}})
