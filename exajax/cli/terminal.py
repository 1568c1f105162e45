"""Log records of exajax on the terminal: one line each on standard error."""

import logging
import sys
import time
from collections.abc import Callable


class TerminalHandler(logging.Handler):
    """Prints records on the current `sys.stderr`.

    Args:
        line: the line for a message.
    """

    def __init__(self, line: Callable[[str], str]) -> None:
        super().__init__()
        self._line = line

    def emit(self, record: logging.LogRecord) -> None:
        """Prints one record."""
        print(self._line(record.getMessage()), file=sys.stderr, flush=True)


def log_to_terminal() -> None:
    """Prints what `exajax.*` loggers report, from INFO up, as `exajax: MESSAGE`."""
    _replace_handlers(logging.getLogger("exajax"), "exajax: {}".format)


def log_with_elapsed_time(name: str) -> logging.Logger:
    """Prints what the loggers below `name` report with the seconds since this call; returns it."""
    began_s = time.monotonic()
    logger = logging.getLogger(name)
    _replace_handlers(logger, lambda text: f"{time.monotonic() - began_s:8.1f} s  {text}")
    logger.propagate = False
    return logger


def _replace_handlers(logger: logging.Logger, line: Callable[[str], str]) -> None:
    for handler in [h for h in logger.handlers if isinstance(h, TerminalHandler)]:
        logger.removeHandler(handler)
    logger.addHandler(TerminalHandler(line))
    logger.setLevel(logging.INFO)
