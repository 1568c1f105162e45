"""Types of flag values for `argparse`, each with its bounds, which its error message names.

`argparse` prints their errors on one line with the flag's name. `int` and `float` would accept
digits of other scripts, underscores, NaN and numbers out of range.
"""

import argparse
import dataclasses
import math
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

from exajax.recipe.option import Option, is_whole
from exajax.recipe.recipe import MOST_SEED as MOST_SEED
from exajax.recipe.recipe import MOST_SEQ as MOST_SEQ
from exajax.recipe.recipe import MOST_STEPS as MOST_STEPS
from exajax.recipe.recipe import MOST_TIMES as MOST_TIMES
from exajax.resilience.options import MOST_SECONDS as MOST_SECONDS
from exajax.spmd.mesh import MOST_DEVICES as MOST_DEVICES

MOST_NUMBER = 1e30
"""Upper bound of numbers without one of their own."""

MOST_PATH, MOST_NAME = 4095, 255
"""Bytes of a path and of a name in it (Linux, limits.h: PATH_MAX less its NUL, NAME_MAX)."""

SHOWN = 60
"""Characters of a refused value that are printed."""


def whole(least: int, most: int) -> Callable[[str], int]:
    """The type of a whole number between two bounds, both included."""

    def read(text: str) -> int:
        digits = re.fullmatch(r"[+-]?\d{1,20}", text, re.ASCII)
        if digits and least <= int(text) <= most:
            return int(text)
        raise argparse.ArgumentTypeError(
            f"{_shown(text)} is no such number; give a whole number from {least:,} to {most:,}"
        )

    return read


def number(
    least: float, most: float, *, above: bool = False, below: bool = False
) -> Callable[[str], float]:
    """The type of a number between two bounds.

    Args:
        least: the lower bound.
        most: the upper bound, included.
        above: whether the lower bound itself is left out.
        below: whether the upper bound is.
    """

    def read(text: str) -> float:
        if re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", text.lower(), re.ASCII):
            value = float(text)
            too_small = value <= least if above else value < least
            too_large = value >= most if below else value > most
            if not (too_small or too_large):
                return value
        bound = f"above {least:g}" if above else f"from {least:g}"
        raise argparse.ArgumentTypeError(
            f"{_shown(text)} is no such number; give a number {bound} to "
            f"{'below ' if below else ''}{most:g}"
        )

    return read


def of(field: "dataclasses.Field[Any]", known: Option) -> Callable[[str], Any]:
    """The type of an option's flag."""
    if known.choices:
        by_text = {str(choice): choice for choice in known.choices}
        return lambda text: by_text.get(text, text)
    if field.type is Path or Path in get_args(field.type):
        return path
    if known.least == -math.inf:
        return name
    most = known.most if known.most < math.inf else MOST_NUMBER
    if is_whole(field):
        return whole(int(known.least), int(most))
    return number(known.least, most, above=known.above, below=known.below)


def path(text: str) -> Path:
    """The type of a path of a file or folder, which need not exist.

    Raises:
        argparse.ArgumentTypeError: no file can have that path, or its folder cannot be read.
    """
    name(text)
    return Path(text)


def name(text: str) -> str:
    """The type of a name, such as of a model, or of a path in its place.

    Raises:
        argparse.ArgumentTypeError: as for `path`.
    """
    problem = _problem(text)
    if problem:
        raise argparse.ArgumentTypeError(problem)
    return text


def utf8(text: str) -> str:
    """Is the type of a text that is no name: it may have line ends, and half characters not.

    Raises:
        argparse.ArgumentTypeError: its bytes are not UTF-8.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise argparse.ArgumentTypeError(
            f"{_shown(text)} is not UTF-8; give whole characters"
        ) from error
    return text


def _problem(text: str) -> str | None:
    if not text.strip():
        return "it is empty; give a name or a path"
    encoded = os.fsencode(text) if "\0" not in text else b""
    if not encoded or not text.isprintable():
        return f"{_shown(text)} is no path; leave out what cannot be printed"
    if len(encoded) > MOST_PATH or max(map(len, encoded.split(b"/"))) > MOST_NAME:
        return f"{_shown(text)} is longer than a path may be; give a shorter one"
    try:
        os.stat(text)
        if os.path.isdir(text) and not os.access(text, os.R_OK | os.X_OK):
            raise PermissionError
    except PermissionError:
        return f"one may not look into {_shown(text)}; give another, or ask for the right to"
    except OSError:
        return None  # the command checks whether it must exist
    return None


def _shown(text: str) -> str:
    shown = repr(text)
    return shown if len(shown) <= SHOWN else f"{shown[:SHOWN]}... ({len(text):,} characters)"
