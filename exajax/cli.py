"""The `exajax` command."""

import os
import sys
import time
import traceback
from collections.abc import Sequence

from exajax import distributed, runtime
from exajax.errors import FAILED, InputError, RunFailed
from exajax.flags import Formatter, Parser
from exajax.local_hosts import Interrupted, StageFailed
from exajax.resilience.watchdog import ATTEMPT

LAST_WORD_S = 5.0
"""Time that the first process has to say why a run has failed, before the others end."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command; returns 0 done, 1 failed, 2 bad input, 130 interrupted."""
    from exajax.commands import (
        calibrate,
        chaos,
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

    parser = Parser(
        prog="exajax",
        description="Train on a JAX mesh, or simulate the same step on a described machine.",
        formatter_class=Formatter,
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    data = (sample, export, tokenise)
    machines = (validate, calibrate, doctor)
    for module in (train, goodput, chaos, simulate, plan, *data, *machines):
        name = module.__name__.rpartition(".")[2]
        summary = (module.__doc__ or "").splitlines()[0]
        command = commands.add_parser(
            name,
            aliases=getattr(module, "ALIASES", ()),
            help=summary,
            description=summary,
            formatter_class=Formatter,
        )
        module.add_flags(command)
        command.set_defaults(run=module.run)
    args = parser.parse_args(argv)
    args.argv = list(sys.argv[1:] if argv is None else argv)
    return guarded(args.run, args)


def guarded(run, *args) -> int:  # type: ignore[no-untyped-def]
    """Calls a command and turns what it raises into a message and an exit code."""
    runtime.prepare()
    code = _guarded(run, *args)
    if code not in (0, 130) and distributed.joined():
        # Leaving in order would wait for the other processes, which wait for this one.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


def _guarded(run, *args) -> int:  # type: ignore[no-untyped-def]
    try:
        return int(run(*args) or 0)
    except BrokenPipeError:  # whoever read the output has seen enough
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
        return 0
    except InputError as error:
        if distributed.speaks():
            print(f"exajax: error: {error}", file=sys.stderr)
        return 2
    except RunFailed as error:
        if distributed.speaks():
            print(f"exajax: failed: {error}", file=sys.stderr, flush=True)
        else:
            time.sleep(LAST_WORD_S)  # who ends first ends the job
        return FAILED if ATTEMPT in os.environ else 1
    except StageFailed as error:
        print(error, file=sys.stderr)
        return 2 if error.code == 2 else 1
    except (Interrupted, KeyboardInterrupt):
        print("exajax: interrupted", file=sys.stderr)
        return 130
    except Exception:
        traceback.print_exc()
        print("exajax: failed, see above; this is not your input's fault", file=sys.stderr)
        return 1
