"""Files and flags drawn at random: every reader ends in a value or in one line of error.

A minute of it runs in CI; `benchmarks/fuzz.py` goes on for as long as it is asked to.
"""

import os

CI_EXAMPLES = 60

EXAMPLES = int(os.environ.get("EXAJAX_FUZZ_EXAMPLES", CI_EXAMPLES))
"""Examples that each test draws: the same in every run of CI, others with every other number."""
