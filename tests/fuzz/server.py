"""Runs commands one after the other, each in a fork of a process that has imported them.

It reads a line of JSON a command, `{"argv": [...], "cwd": "..."}`, and answers with a line of JSON:
its exit code and what it printed. `code` is null where the command took longer than the limit.
"""

import argparse
import json
import os
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

LIMIT_S = 20.0
"""Seconds a command may take, those not counted in which other processes had the cores."""

TRAINS = ("train", "chaos")


def checks(args: argparse.Namespace) -> int:
    """Does what training does with its flags and files before it starts anything."""
    from exajax.cli import chaos, train
    from exajax.train import inputs

    job = train.job_of(args)
    if args.hosts is not None:
        job.supervision.check_local(job.recipe)
    job.supervision.check(args.hosts or 1)
    inputs.check(job.recipe, job.options)
    if args.argv[0] == "chaos":
        chaos._schedule(args)
    if args.json:
        print("{}")  # what training would come to is not a part of this
    return 0


def run(argv: list[str]) -> int:
    """Runs a command in this process; of one that trains, all that comes before."""
    from exajax.cli import dispatch

    if argv[:1] and argv[0] in TRAINS:
        args = dispatch.parser().parse_args(argv)
        args.argv = argv
        return dispatch._guarded(checks, args)
    return dispatch.command(argv)


def child(argv: list[str], cwd: str, out: int, err: int) -> None:
    """Runs a command in a fork, and ends it."""
    code = 1
    try:
        os.chdir(cwd)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(out, 1)
        os.dup2(err, 2)
        code = run(argv)
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def queued_s(pid: int) -> float:
    """Seconds that a process was ready to run but had no core: 0 where Linux does not say."""
    try:
        # Nanoseconds on a core, nanoseconds in its queue, slices (Linux, sched-stats.rst).
        return int(Path(f"/proc/{pid}/schedstat").read_text().split()[1]) / 1e9
    except (OSError, IndexError, ValueError):
        return 0.0


def answer(argv: list[str], cwd: str) -> dict[str, Any]:
    """Returns how a command ended."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        began_s = time.monotonic()
        pid = os.fork()
        if not pid:
            child(argv, cwd, out.fileno(), err.fileno())
        status: int | None = None
        while status is None and time.monotonic() - began_s - queued_s(pid) < LIMIT_S:
            ended, code = os.waitpid(pid, os.WNOHANG)
            status = code if ended else None
            time.sleep(0.002)
        if status is None:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        out.seek(0)
        err.seek(0)
        return {
            "code": None if status is None else os.waitstatus_to_exitcode(status),
            "out": out.read().decode("utf8", "replace"),
            "err": err.read().decode("utf8", "replace"),
            "seconds": time.monotonic() - began_s,
        }


def main() -> None:
    """Answers until standard input ends."""
    import exajax.cli.dispatch as dispatch

    dispatch.parser()  # imports all commands
    answers = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        request = json.loads(line)
        answers.write(json.dumps(answer(request["argv"], request["cwd"])) + "\n")
        answers.flush()


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2]))
    main()
