"""Entry points of the `exajax` command and of `launch/multihost.py`.

They import next to nothing, so that Ctrl-C is handled while the rest is imported.
"""

from exajax.job import interrupts


def main(argv: list[str] | None = None) -> int:
    """Runs a command; returns 0 done, 1 failed, 2 bad input, 130 interrupted."""
    interrupts.leave_at_once()
    from exajax.cli import dispatch

    return dispatch.command(argv)


def front_door(argv: list[str] | None = None) -> int:
    """Runs `launch/multihost.py`; returns 0 done, 1 failed, 2 bad input, 130 interrupted."""
    interrupts.leave_at_once()
    from exajax.cli import dispatch

    return dispatch.front_door(argv)
