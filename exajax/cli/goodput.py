"""Prints the goodput of a run: useful time, and lost time by cause."""

import argparse
import logging

from exajax.cli import flag_types
from exajax.errors import InputError
from exajax.job import goodput, runtime


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the command's flags."""
    add = parser.add_argument
    add(
        "--run-dir",
        type=flag_types.path,
        required=True,
        metavar="DIR",
        help="folder of a run, also a live one",
    )
    add("--json", action="store_true", help="one JSON object on standard output")


def run(args: argparse.Namespace) -> int:
    """Prints the goodput of a run."""
    result = goodput.goodput_of_run(args.run_dir, logging.getLogger(__name__).warning)
    if result.ratio is None:
        raise InputError(
            "run_dir", f"{args.run_dir} holds no events of a run", "give the folder of a run"
        )
    text = runtime.json_text(result.to_json()) if args.json else table(result)
    print(text, flush=True)
    return 0


def table(result: goodput.Goodput) -> str:
    """Seconds and shares of the wall time, the largest losses first."""
    lost = sorted(result.lost_s.items(), key=lambda item: -item[1])
    rows = [("useful", result.useful_s), *lost, ("wall time", result.wall_s)]
    lines = [
        f"{name:<12}{seconds:>12,.1f} s  {seconds / result.wall_s:>6.1%}" for name, seconds in rows
    ]
    lines.append(
        f"{result.steps:,} steps trained, {result.replayed_steps:,} of them more than once"
    )
    if result.away_s:
        lines.append(f"between its jobs {result.away_s:,.1f} s went by, which count for nothing")
    return "\n".join(lines)
