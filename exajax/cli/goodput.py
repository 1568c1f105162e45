"""Says where the time of a run went: useful steps, and what was lost to which cause."""

import argparse
import sys

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
    """Prints where the time of a run went."""
    found = goodput.goodput_of_run(
        args.run_dir, lambda problem: print(f"exajax: {problem}", file=sys.stderr)
    )
    if found.ratio is None:
        raise InputError(
            "run_dir", f"{args.run_dir} holds no events of a run", "give the folder of a run"
        )
    text = runtime.json_text(found.to_json()) if args.json else table(found)
    print(text, file=sys.stdout, flush=True)
    return 0


def table(found: goodput.Goodput) -> str:
    """Returns seconds and shares of the wall time, the largest losses first."""
    lost = sorted(found.lost_s.items(), key=lambda item: -item[1])
    rows = [("useful", found.useful_s), *lost, ("wall time", found.wall_s)]
    lines = [
        f"{name:<12}{seconds:>12,.1f} s  {seconds / found.wall_s:>6.1%}" for name, seconds in rows
    ]
    lines.append(f"{found.steps:,} steps made, {found.replayed_steps:,} of them more than once")
    if found.away_s:
        lines.append(f"between its jobs {found.away_s:,.1f} s went by, which count for nothing")
    return "\n".join(lines)
