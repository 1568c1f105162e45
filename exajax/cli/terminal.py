"""Log records of exajax on the terminal: one line each on standard error."""

import logging
import sys


class TerminalHandler(logging.Handler):
    """Prints records as `exajax: MESSAGE` on the current `sys.stderr`."""

    def emit(self, record: logging.LogRecord) -> None:
        """Prints one record."""
        print(f"exajax: {record.getMessage()}", file=sys.stderr, flush=True)


def log_to_terminal() -> None:
    """Prints what `exajax.*` loggers report, from INFO up; more calls change nothing."""
    logger = logging.getLogger("exajax")
    if not any(isinstance(handler, TerminalHandler) for handler in logger.handlers):
        logger.addHandler(TerminalHandler())
        logger.setLevel(logging.INFO)
