"""Flags made from the options of recipes and jobs, and messages that name options as flags."""

import argparse
import dataclasses
import re
import sys
from collections.abc import Callable, Container, Mapping
from types import MappingProxyType
from typing import Any, NoReturn, TypeVar, get_args

from exajax.cli import flag_types
from exajax.errors import InputError
from exajax.models.dimensions import FLOPS_CONVENTION
from exajax.models.presets import lookup
from exajax.recipe import option
from exajax.recipe.recipe import Recipe
from exajax.spmd.mesh import MeshSpec
from exajax.train.data.documents import BAD_LINES

T = TypeVar("T")

MODEL = "llama2-70b"

RECIPE_FLAGS = option.option_names(Recipe)
"""Names of a recipe's fields, each of which has a flag."""

MOST_MESSAGE = 800
"""Characters of a message that are printed at most."""


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line."""

    def parse_known_args(self, args=None, namespace=None):  # type: ignore[no-untyped-def]
        """Parses, and refuses `--flag=--`, at which `argparse` raises a `ValueError`."""
        for word in sys.argv[1:] if args is None else args:
            if word.startswith("-") and word.partition("=")[2] == "--":
                self.error(f"argument {word.partition('=')[0]}: '--' is no value")
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        """Prints the message and exits with code 2."""
        line = " ".join(message.split())
        shown = line if len(line) <= MOST_MESSAGE else f"{line[:MOST_MESSAGE]}..."
        self.exit(2, f"{self.prog}: error: {shown}; see {self.prog} --help\n")


class Formatter(argparse.ArgumentDefaultsHelpFormatter):
    """Prints the default of a flag, if it has one."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default is None or action.default is False or "default" in (action.help or ""):
            return action.help
        return super()._get_help_string(action)


def as_flags(text: str, options: Container[str]) -> str:
    """A message in which options in backticks are written as flags.

    Args:
        text: such as "give `micro_batch` 1".
        options: names of the command's options; other words in backticks stay.
    """

    def flag(match: re.Match[str]) -> str:
        return f"--{match[1].replace('_', '-')}" if match[1] in options else match[0]

    return re.sub("`([a-z_]+)`", flag, text)


def with_flags(error: Exception, options: Container[str]) -> str:
    """The message of an error, with options written as flags as by `as_flags`."""
    if not isinstance(error, InputError):
        return as_flags(str(error), options)
    first, _, rest = error.field.partition(" ")
    field = as_flags(f"`{first}`", options).strip("`") + (f" {rest}" if rest else "")
    return str(InputError(field, as_flags(error.problem, options), as_flags(error.fix, options)))


def add_recipe_flags(parser: argparse.ArgumentParser, model: str = MODEL) -> None:
    """Adds the flags of a recipe."""
    parser.epilog = FLOPS_CONVENTION
    group = parser.add_argument_group("recipe")
    add_options(group, Recipe, {"model": model}, {"model": flag_types.name, "mesh": str})
    group.add_argument(
        "--json", action="store_true", help="print one JSON object on stdout, nothing else"
    )


def add_options(
    parser: argparse._ActionsContainer,
    of: type,
    defaults: Mapping[str, Any] = MappingProxyType({}),
    types: Mapping[str, Callable[[str], Any]] = MappingProxyType({}),
) -> None:
    """Adds a flag for every option of a dataclass.

    Args:
        parser: takes the flags.
        of: the dataclass.
        defaults: defaults of this command that differ from those of the fields.
        types: readers of flags whose field's type does not determine one.
    """
    for field, known in option.option_fields(of):
        default = defaults.get(field.name, field.default)
        missing = default is dataclasses.MISSING
        help = known.help + (f" (default: {known.derived})" if known.derived else "")
        keywords: dict[str, Any] = {"default": None if missing else default, "help": help}
        if field.type is bool or bool in get_args(field.type):
            keywords["action"] = argparse.BooleanOptionalAction
        else:
            keywords["type"] = types.get(field.name) or flag_types.of(field, known)
            if known.choices:
                keywords["choices"] = known.choices
            else:
                keywords["metavar"] = known.unit
            keywords["required"] = missing and not known.derived
        parser.add_argument(f"--{field.name.replace('_', '-')}", **keywords)


def add_bad_lines(parser: argparse._ActionsContainer) -> None:
    """Adds `--bad-lines`, for commands that read text."""
    parser.add_argument(
        "--bad-lines",
        choices=BAD_LINES,
        default=BAD_LINES[0],
        help='where a line of .jsonl holds no "text": end with its number, or leave it out and '
        "count it",
    )


def options_of(of: type[T], args: argparse.Namespace) -> T:
    """The instance of a dataclass of options that the flags describe."""
    return of(**{name: getattr(args, name) for name in option.option_names(of)})


def recipe_of(args: argparse.Namespace, **changes: Any) -> Recipe:
    """The recipe that the flags describe, with some of its fields changed.

    Raises:
        InputError: a flag's value is impossible, or two contradict each other.
    """
    options = {name: getattr(args, name) for name in RECIPE_FLAGS}
    options |= {"model": lookup(args.model), "mesh": MeshSpec.parse(args.mesh)} | changes
    return Recipe.of(options.pop("model"), options.pop("mesh"), **options)


def recipe_argv(recipe: Recipe, model: str) -> list[str]:
    """The flags that describe a recipe.

    Args:
        recipe: the recipe.
        model: its model as it was given: a name, or the path of a file.
    """
    values = {name: getattr(recipe, name) for name in RECIPE_FLAGS}
    values |= {"model": model}
    argv = []
    for name, value in values.items():
        flag = name.replace("_", "-")
        if value is None:
            continue
        if isinstance(value, bool):
            argv.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            argv.append(f"--{flag}={value}")
    return argv
