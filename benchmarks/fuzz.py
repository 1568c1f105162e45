"""Draws files and flag lines for as long as asked, and counts how they ended.

    python benchmarks/fuzz.py --minutes 60

Every round runs the tests in `tests/fuzz` with another seed. A failure is a traceback, NaN, a run
of more than 20 s (without those spent waiting for a core), or anything but a value or one line of
error; its smallest example is printed.
Writes `benchmarks/data/fuzz.json`.
"""

import argparse
import collections
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

from exajax.job.provenance import machine, versions

REPOSITORY = Path(__file__).parents[1]
DATA = REPOSITORY / "benchmarks" / "data" / "fuzz.json"
EXAMPLES = 300


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0, help="of the first round")
    parser.add_argument("tests", nargs="*", default=["tests/fuzz"])
    args = parser.parse_args()
    began_s, seed = time.time(), args.seed
    tried: dict[str, int] = collections.Counter()
    failures: list[str] = []
    while time.time() - began_s < 60 * args.minutes:
        done = subprocess.run(
            [
                *(sys.executable, "-m", "pytest", "-q", *args.tests, "--timeout=0"),
                *(f"--hypothesis-seed={seed}", "--hypothesis-show-statistics"),
            ],
            cwd=REPOSITORY,
            env=os.environ | {"EXAJAX_FUZZ_EXAMPLES": str(EXAMPLES)},
            capture_output=True,
            text=True,
        )
        for test, passed, failed in counts(done.stdout):
            tried[test] += passed + failed
        if done.returncode:
            failures += re.findall(r"^FAILED (.*)$", done.stdout, re.MULTILINE) or [done.stderr]
            print(done.stdout[-20_000:])
        seed += 1
        minutes = (time.time() - began_s) / 60
        print(
            f"{minutes:.1f} min: {sum(tried.values()):,} tried, {len(failures)} failed", flush=True
        )
        DATA.write_text(
            json.dumps(
                {
                    "kind": "measured",
                    "minutes": round(minutes, 1),
                    "seeds": [args.seed, seed - 1],
                    "tried": dict(sorted(tried.items())),
                    "tried_total": sum(tried.values()),
                    "failures": failures,
                    "machine": machine(),
                    "versions": versions(),
                },
                indent=1,
            )
            + "\n"
        )
    return 1 if failures else 0


def counts(statistics: str) -> list[tuple[str, int, int]]:
    """Returns tests with their passing and failing examples, from what hypothesis prints."""
    found = []
    for section in re.split(r"^(?=tests/\S+::\S+:$)", statistics, flags=re.MULTILINE)[1:]:
        name = section.partition(":\n")[0]
        numbers = re.findall(r"(\d+) passing, (\d+) failing", section)
        found.append((name, sum(int(a) for a, _ in numbers), sum(int(b) for _, b in numbers)))
    return found


if __name__ == "__main__":
    sys.exit(main())
