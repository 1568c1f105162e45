"""`python -m exajax` is the `exajax` command."""

import sys

from exajax.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
