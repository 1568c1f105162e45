"""Files and flags drawn at random: every reader ends in a value or in one line of error.

A minute of it runs in CI; `benchmarks/fuzz.py` goes on for as long as it is asked to.
"""

import os

EXAMPLES = int(os.environ.get("EXAJAX_FUZZ_EXAMPLES", "60"))
"""Examples that each test draws."""
