"""Where modules may stand in the package, and which of them may import which."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

ROOMS = (
    "errors",
    "files",
    "units",
    "roofline",
    "machine",
    "spmd",
    "models",
    "recipe",
    "job",
    "train",
    "resilience",
    "chaos",
    "program",
    "simulate",
    "validate",
    "calibrate",
    "report",
    "api",
    "cli",
    "__init__",
    "__main__",
)
"""Every room of `exajax/`, from the ground up: it imports from those before it alone."""

APART = {"train", "simulate"}
"""Rooms that never import each other: what is measured owes nothing to what is simulated."""

PACKAGE = REPOSITORY / "exajax"


def modules() -> dict[str, Path]:
    """Returns every module of the package by its name without `exajax.`."""
    # `models/` stands beside `exajax/`, and is linked into it.
    paths = {path.relative_to(PACKAGE): path for path in PACKAGE.rglob("*.py")}
    paths |= {path.relative_to(REPOSITORY): path for path in (REPOSITORY / "models").rglob("*.py")}
    linked = [path for path in paths if path.parts[0] in ("meshes", "launch")]
    return {".".join(p.with_suffix("").parts): paths[p] for p in sorted({*paths} - {*linked})}


MODULES = modules()


def imports(path: Path) -> Iterator[str]:
    """Yields the modules of the package that a file imports, inside of functions too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            named = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            named = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in named:
            inner = name.removeprefix("exajax.")
            while inner and name.startswith("exajax"):
                for module in (inner, f"{inner}.__init__"):
                    if module in MODULES:
                        yield module
                        inner = ""
                        break
                else:
                    inner = inner.rpartition(".")[0]


def room(module: str) -> str:
    return module.partition(".")[0]


@pytest.mark.parametrize("module", MODULES)
def test_a_module_stands_in_a_room_and_imports_from_those_before_it(module):
    assert room(module) in ROOMS
    for other in imports(MODULES[module]):
        mine, theirs = room(module), room(other)
        assert ROOMS.index(theirs) <= ROOMS.index(mine), f"exajax.{module} imports exajax.{other}"
        assert mine == theirs or {mine, theirs} != APART, f"exajax.{module} imports exajax.{other}"


def test_no_module_imports_itself_through_others():
    graph = {module: set(imports(path)) for module, path in MODULES.items()}

    def trim(graph: dict[str, set[str]]) -> dict[str, set[str]]:
        """Drops modules that import none of the others until there are none of them left."""
        while leaves := [module for module, others in graph.items() if not others & graph.keys()]:
            graph = {m: others for m, others in graph.items() if m not in leaves}
        return graph

    left = trim(graph)  # circles, and what leads to them
    imported_by = {m: {other for other in left if m in left[other]} for m in left}
    circles = trim(imported_by)
    assert not circles, {module: sorted(left[module] & circles.keys()) for module in circles}


def test_only_the_commands_read_a_command_line():
    readers = [module for module in MODULES if "import argparse" in MODULES[module].read_text()]
    assert {room(module) for module in readers} == {"cli"}
