"""Parses a command line, runs the command, and turns errors into messages and exit codes."""

import argparse
import os
import sys
import time
from collections.abc import Callable, Container, Sequence
from pathlib import Path

from exajax.cli.flags import Formatter, Parser, as_flags, with_flags
from exajax.cli.terminal import log_to_terminal
from exajax.errors import FAILED, InputError, RunFailed, disk_failure, recurs
from exajax.job import distributed, environment, interrupts, launchers, runtime
from exajax.job.local_hosts import Interrupted, StageFailed

MOST_SHOWN = 300
"""Characters of an unexpected error's message that are printed at most."""

LAST_WORD_S = 5.0
"""Seconds that the first process has to print why a run has failed, before the others end."""

Run = Callable[[argparse.Namespace], int]


def command(argv: Sequence[str] | None = None) -> int:
    """Runs the command of `exajax COMMAND ...`; returns its exit code."""
    if not _prepared():
        return 2
    args = parser().parse_args(argv)
    args.argv = list(sys.argv[1:] if argv is None else argv)
    return _guarded(args.run, args)


def parser() -> Parser:
    """The parser of all commands, whose results have the command's function as `run`."""
    from exajax.cli import (
        calibrate,
        chaos,
        child_process,
        doctor,
        export,
        goodput,
        plan,
        sample,
        simulate,
        tokenise,
        train,
        validate,
    )

    top = Parser(
        prog="exajax",
        description="Train on a JAX mesh, or simulate the same step on a described machine.",
        formatter_class=Formatter,
    )
    commands = top.add_subparsers(required=True, metavar="COMMAND")
    data = (sample, export, tokenise)
    machines = (validate, calibrate, doctor)
    for module in (train, goodput, chaos, simulate, plan, *data, *machines):
        name = module.__name__.rpartition(".")[2]
        summary = (module.__doc__ or "").splitlines()[0]
        arguments = commands.add_parser(
            name,
            aliases=getattr(module, "ALIASES", ()),
            help=summary,
            description=summary,
            formatter_class=Formatter,
        )
        module.add_flags(arguments)
        arguments.set_defaults(run=module.run)
    job_arguments = commands.add_parser("job")  # commands without a help text are not listed
    child_process.add_flags(job_arguments)
    job_arguments.set_defaults(run=child_process.run)
    return top


def front_door(argv: Sequence[str] | None = None) -> int:
    """Runs `launch/multihost.py`; returns its exit code."""
    if not _prepared():
        return 2
    from exajax.cli import multihost

    args = multihost.multihost_parser().parse_args(argv)
    args.argv = ["train", *(sys.argv[1:] if argv is None else argv)]
    return _guarded(multihost.run, args)


def _prepared() -> bool:
    """Sets up this process and its logging; returns whether its `EXAJAX_*` variables are valid."""
    log_to_terminal()
    try:
        environment.check()
        runtime.prepare_process()
    except InputError as error:
        print(f"exajax: error: {error}", file=sys.stderr)
        return False
    return True


def _guarded(run: Run, args: argparse.Namespace) -> int:
    """Runs a command, and turns exceptions into a message and an exit code."""
    interrupts.raise_in_main()
    try:
        code = _code(run, args)
    except KeyboardInterrupt:  # while the reason of a failure was printed
        code = interrupts.INTERRUPTED
    if code == interrupts.INTERRUPTED:
        interrupts.report_interrupt()
    interrupts.leave_at_once()
    interrupted, joined = code == interrupts.INTERRUPTED, distributed.joined()
    # An orderly exit waits for this process's threads and, in a job of several processes, for
    # the other processes, which wait for this one unless all were interrupted.
    if (interrupted and not joined) or (joined and not interrupted and code):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


def _code(run: Run, args: argparse.Namespace) -> int:
    try:
        return int(run(args) or 0)
    except BrokenPipeError:  # the reader of the output has closed it
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
        return 0
    except InputError as error:
        if not _reported(args, error) and launchers.is_first_process():
            print(f"exajax: error: {with_flags(error, _options(args))}", file=sys.stderr)
        return 2
    except RunFailed as error:
        return _failed(error, args)
    except StageFailed as error:
        print(error, file=sys.stderr)
        return 2 if error.code == 2 else 1
    except (Interrupted, KeyboardInterrupt):
        return interrupts.INTERRUPTED
    except Exception as error:
        if failure := disk_failure(error):
            return _failed(failure, args)
        _reported(args, error)
        where = runtime.print_traceback()
        what = next(iter(str(error).splitlines()), "")[:MOST_SHOWN]
        print(
            f"exajax: failed, see {where}: {type(error).__name__}: {what}; this is not your "
            "input's fault",
            file=sys.stderr,
        )
        return 1


def _failed(error: RunFailed, args: argparse.Namespace) -> int:
    if launchers.is_first_process():
        text = as_flags(str(error), _options(args))
        print(f"exajax: failed: {text}", file=sys.stderr, flush=True)
    else:
        time.sleep(LAST_WORD_S)  # the first process that ends ends the job
    return FAILED if environment.ATTEMPT.name in os.environ else 1


def _options(args: argparse.Namespace) -> Container[str]:
    """Options with a flag in this command, or in the one that wrote the job file."""
    return getattr(args, "options", vars(args))


def _reported(args: argparse.Namespace, error: Exception) -> bool:
    """Reports an error to the job's leader; returns whether this process is supervised."""
    run_dir = getattr(args, "run_dir", None)
    if environment.ATTEMPT.name not in os.environ or run_dir is None:
        return False
    from exajax.resilience import watchdog

    kind = "" if isinstance(error, InputError) else f"{type(error).__name__}: "
    text = kind + next(iter(with_flags(error, _options(args)).splitlines()), "no message")[:1000]
    return watchdog.report_problem(Path(run_dir), text, recurs(error))
