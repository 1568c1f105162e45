"""Machine descriptions as a careless or hostile person may write them, for tests to draw from."""

from typing import Any

from hypothesis import strategies as st

from exajax.files.reading import read_toml
from exajax.machine import cluster, software
from exajax.machine.chip_file import chip_table
from exajax.machine.fabric import with_named_fabric
from tests.fuzz.mutations import mutated, paths, put

FIGURES = (
    *("1e-320 B/s", "1e400 B/s", "1e30 B/s", "1 kB/s", "100 PB/s", "400 gb/s", "9" * 4300 + " B/s"),
    *("1 MFLOP/s", "100 EFLOP/s", "1e-12 s", "100 s", "0 s", "-1 us", "1e6 B", "10 PB", "1 TB/s/s"),
)
"""Figures at the ends of what a machine may have, and beyond."""

NUMBERS = (1e-6, 1e-300, 1e-12, 0.999, 1.0, 1, 2, 7, 10**6, 10**7, 1e6, 1e15, 1e24, 1e300)


def described(name: str) -> dict[str, Any]:
    """Returns a machine that comes with the project, with all that it names in its own table."""
    table = read_toml(cluster.MESHES / f"{name}.toml")
    table |= {key: with_named_fabric(table[key]) for key in ("link", "network")}
    table["chip"] = chip_table(table["chip"])
    if "software" not in table:
        table["software"] = read_toml(software.PROFILES / "pax-2024.toml")
    return table


MACHINES = {name: described(name) for name in ("dgx-h100", "frontier", "tpu-v6e", "aurora")}


@st.composite
def extreme(draw: st.DrawFn, table: dict[str, Any]) -> dict[str, Any]:
    """Draws a copy of a machine with some of its figures at the ends of their range or beyond."""
    numbers = [path for path in paths(table) if isinstance(_at(table, path), (int, float))]
    figures = [
        (*path, 0)
        for path in paths(table)
        if isinstance(pair := _at(table, path), list) and pair and isinstance(pair[0], str)
    ]
    for _ in range(draw(st.integers(1, 3))):
        if draw(st.booleans()):
            table = put(table, draw(st.sampled_from(figures)), draw(st.sampled_from(FIGURES)))
        else:
            table = put(table, draw(st.sampled_from(numbers)), draw(st.sampled_from(NUMBERS)))
    return table


def machines() -> st.SearchStrategy[Any]:
    """Tables of machines: as they are, with fields replaced, removed or added, or extreme."""
    one = st.sampled_from(sorted(MACHINES)).map(MACHINES.__getitem__)
    return one | one.flatmap(mutated) | one.flatmap(extreme)


def _at(value: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        value = value[key]
    return value
