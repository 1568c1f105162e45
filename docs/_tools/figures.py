#!/usr/bin/env python3
"""Fills the figures of README and docs from the data that they come from.

    python docs/_tools/figures.py            # after a file in benchmarks/data has changed
    python docs/_tools/figures.py --check    # fails if a page shows anything else

What stands between `<!-- figures: NAME -->` and `<!-- end -->` in a page is made by the function
of that name in `accuracy.py`, `parts.py`, `runs.py` or `constants.py`, and by nothing else. At the beginning of a
line it is a paragraph or a table, else a part of a sentence.
"""

import argparse
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path

import accuracy
import constants
import parts
import runs

ROOT = Path(__file__).parents[2]

FIGURES: dict[str, Callable[[], str]] = {
    make.__name__.replace("_", "-"): make
    for make in (
        *(
            accuracy.trust,
            accuracy.published_jax,
            accuracy.sources,
            accuracy.profiles,
            accuracy.memory_of_rows,
        ),
        *(parts.kernels, parts.collectives, parts.engines, parts.moved),
        *(accuracy.cpu_recipes, runs.main_job, runs.plan_speed, runs.simulate_speed),
        *(runs.compile_70b, runs.cpu_nanogpt, runs.checkpoint_speed),
        *(runs.chaos, runs.chaos_kinds, runs.live_devices, runs.reference_jobs),
        *(constants.overlap_slowdown, constants.memory_fraction, constants.fits_margin),
        *(constants.null_efficiency, constants.draws, constants.variability),
    )
}
"""What makes the figures of each name."""

MARKED = re.compile(r"(<!-- figures: ([a-z0-9-]+) -->).*?(<!-- end -->)", re.DOTALL)


def pages() -> list[Path]:
    """Returns every page that may hold figures."""
    made = ROOT / "docs" / "_build"
    docs = [page for page in (ROOT / "docs").rglob("*.md") if made not in page.parents]
    return [ROOT / "README.md", *sorted(docs), ROOT / "benchmarks" / "README.md"]


def filled(page: Path) -> str:
    """Returns the text of a page with the figures of today."""

    def block(match: re.Match[str]) -> str:
        text = FIGURES[match[2]]()
        here = os.path.relpath(ROOT, page.parent)
        text = re.sub(r"\]\(repo:", "](" if here == "." else f"]({here}/", text)
        alone = match.start() == 0 or match.string[match.start() - 1] == "\n"
        return match[1] + (f"\n\n{text}\n\n" if alone else text) + match[3]

    return MARKED.sub(block, page.read_text())


def main() -> int:
    """Writes the pages, or compares them; returns the exit code."""
    arguments = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    arguments.add_argument(
        "--check", action="store_true", help="write nothing, fail if one differs"
    )
    check = arguments.parse_args().check
    changed = [page for page in pages() if filled(page) != page.read_text()]
    for page in changed:
        print(
            f"{page.relative_to(ROOT)}: {'its figures are not those of the data' if check else 'written'}"
        )
        if not check:
            page.write_text(filled(page))
    if check and changed:
        print("run python docs/_tools/figures.py")
    return int(check and bool(changed))


if __name__ == "__main__":
    sys.exit(main())
