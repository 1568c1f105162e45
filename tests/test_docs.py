"""README and docs: their commands parse, their links lead somewhere, their marked blocks run."""

import argparse
import ast
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import exajax
from exajax.chaos import faults_file
from exajax.cli import dispatch, flags, multihost
from exajax.job import environment
from exajax.models.presets import PRESETS
from tests.conftest import REPOSITORY

DOCS = REPOSITORY / "docs"
PAGES = [
    *(REPOSITORY / name for name in ("README.md", "CONTRIBUTING.md", "benchmarks/README.md")),
    *sorted(page for page in DOCS.rglob("*.md") if DOCS / "_build" not in page.parents),
]
FENCE = re.compile(
    r"(?:^<!-- run(?P<slow>: slow)? -->\n)?^```(?P<language>\w+)\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
INDENTED = re.compile(r"^ {4}(?=\S)(.*)$", re.MULTILINE)
TOOLS = DOCS / "_tools"


@dataclass(frozen=True)
class Block:
    language: str
    text: str
    runs: bool
    slow: bool


def name(page: Path) -> str:
    return str(page.relative_to(REPOSITORY))


def blocks(page: Path) -> list[Block]:
    return [
        Block(m["language"], m["text"], m[0].startswith("<!-- run"), bool(m["slow"]))
        for m in FENCE.finditer(page.read_text())
    ]


def commands(page: Path) -> Iterator[list[str]]:
    """Yields the words of every command of ours in a page, whatever starts it."""
    shell = [block.text for block in blocks(page) if block.language == "bash"]
    indented = INDENTED.findall(FENCE.sub("", page.read_text()))
    for line in "\n".join([*shell, *indented]).replace("\\\n", " ").splitlines():
        for part in line.split("&&"):
            found = re.search(r"(^|\s)(exajax(?=\s)|python launch/multihost\.py)", part)
            if found and not part.lstrip().startswith(("pip", "#")):
                yield shlex.split(part[found.start(2) :], comments=True)


def subparsers() -> dict[str, argparse.ArgumentParser]:
    actions = dispatch.parser()._actions
    (chosen,) = (action for action in actions if isinstance(action, argparse._SubParsersAction))
    return {**chosen.choices, "multihost.py": multihost.multihost_parser()}


def paths(condition) -> list:
    return [pytest.param(page, id=name(page)) for page in PAGES if condition(page)]


@pytest.mark.parametrize("page", paths(lambda page: any(commands(page))))
def test_every_command_is_one(page, capsys):
    for words in commands(page):
        front = words[0] == "python"
        parser = multihost.multihost_parser() if front else dispatch.parser()
        try:
            args = parser.parse_args(words[2:] if front else words[1:])
        except SystemExit:
            pytest.fail(f"{shlex.join(words)}: {capsys.readouterr().err}")
        if getattr(args, "mesh", None) and args.model in PRESETS:
            flags.recipe_of(args)


@pytest.mark.parametrize("page", paths(lambda page: page.parent.name != "benchmarks"))
def test_every_flag_and_command_that_a_text_names_is_there(page):
    text = FENCE.sub("", page.read_text())
    parsers = subparsers()
    known = {flag for parser in parsers.values() for flag in parser._option_string_actions}
    for code in re.findall(r"`([^`\n]+)`", text):
        if code.startswith("exajax "):
            command = code.split()[1]
            assert command in parsers, code
            for flag in re.findall(r"(?<!\S)--[a-z][a-z-]*", code):
                assert flag in parsers[command]._option_string_actions, code
        elif code.startswith("--"):
            assert code.split()[0].split("=")[0] in known | {"--help", "--xla_dump_to"}, code


def test_the_blocks_that_do_not_run_can_be_read(tmp_path):
    read = 0
    for page in PAGES:
        for block in blocks(page):
            read += 1
            if block.language == "python":
                ast.parse(block.text, filename=name(page))
            if block.language == "toml":
                tomllib.loads(block.text)
            if block.language == "toml" and "[[fault]]" in block.text:
                (tmp_path / "faults.toml").write_text(block.text)
                assert faults_file.read(tmp_path / "faults.toml")
    assert read > 20


def marked() -> Iterator:
    for page in PAGES:
        for slow in (False, True):
            some = [block for block in blocks(page) if block.runs and block.slow == slow]
            mark = [pytest.mark.slow] if slow else []
            if some:
                yield pytest.param(some, id=name(page) + (": slow" if slow else ""), marks=mark)


@pytest.mark.parametrize("some", list(marked()))
def test_the_marked_blocks_of_a_page_run(some, tmp_path):
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    for block in some:
        line = ["bash", "-e", "-c"] if block.language == "bash" else [sys.executable, "-c"]
        done = subprocess.run(
            [*line, block.text],
            env=os.environ | {"PATH": path},
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, f"{block.text}\n{done.stderr[-3000:]}"
        assert done.stdout


@pytest.mark.parametrize("page", paths(lambda page: DOCS not in page.parents))
def test_links_out_of_the_site_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
        assert (page.parent / target).exists(), target


def test_the_readme_is_short():
    text = (REPOSITORY / "README.md").read_text()
    assert len(text.splitlines()) <= 150


def test_a_figure_is_what_the_data_say(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(TOOLS))
    import figures

    page = tmp_path / "page.md"
    page.write_text("From <!-- figures: draws -->7<!-- end --> draws.\n")
    assert figures.filled(page) == "From <!-- figures: draws -->10,000<!-- end --> draws.\n"
    page.write_text("<!-- figures: trust --><!-- end -->\n")
    first = figures.filled(page)
    assert "\n\n- **" in first
    page.write_text(first.replace("%", "0%"))
    assert figures.filled(page) == first


def test_every_figure_is_shown_somewhere(monkeypatch):
    monkeypatch.syspath_prepend(str(TOOLS))
    import figures

    text = "".join(page.read_text() for page in figures.pages())
    assert {found for found in figures.FIGURES if f"<!-- figures: {found} -->" not in text} == set()


def test_every_schema_on_a_page_is_a_table_of_its_fields(monkeypatch):
    monkeypatch.syspath_prepend(str(TOOLS))
    import reference

    pages = "".join(page.read_text() for page in TOOLS.parent.rglob("*.md"))
    targets = re.findall(r"^```\{schema\} (.+)$", pages, re.MULTILINE)
    assert len(targets) > 10
    assert all("| `" in reference.schema(target) for target in targets)


def test_the_reference_has_every_flag_variable_and_public_name(monkeypatch):
    monkeypatch.syspath_prepend(str(TOOLS))
    import reference

    shared = "".join(
        reference.options(f"exajax.{path}")
        for path in ("recipe.recipe.Recipe", "train.options.TrainOptions")
    ) + reference.options("exajax.resilience.options.JobOptions")
    sections = reference.commands("").split("## ")[1:]
    of_command = {section.split("\n")[0].split()[-1]: section for section in sections}
    parsers = {"launch/multihost.py": multihost.multihost_parser(), **subparsers()}
    for command in parsers.keys() - {"job", "tokenize", "multihost.py"}:  # `job` is ours alone
        for flag in parsers[command]._option_string_actions.keys() - {"-h", "--help"}:
            assert f"`{flag}`" in of_command[command] + shared, (command, flag)
    assert "`--no-packed`" in shared
    assert all(f"exajax.{public}" in reference.public("") for public in exajax.__all__)
    names = [variable.name for variable in environment.VARIABLES]
    assert all(f"`{variable}`" in reference.variables("") for variable in names)
