"""What a process settles before JAX is imported: its log level, platform, standard output, end."""

import contextlib
import ctypes
import json
import logging
import math
import os
import re
import signal
import subprocess
import sys
import threading
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from exajax.errors import InputError
from exajax.job import accelerators, environment, xla_flags
from exajax.spmd import compiler_options

if TYPE_CHECKING:
    import jax

PR_SET_PDEATHSIG = 1
"""prctl(2): the signal that a process gets when its parent ends."""


MEMORY_FRACTION = "XLA_PYTHON_CLIENT_MEM_FRACTION"
"""Share of a GPU's memory that JAX takes at the start; JAX prints a traceback at another text."""


_LOG: Path | None = None
"""File that `log_to` has been given."""


def prepare() -> None:
    """Quiets the libraries, and keeps JAX from looking for accelerators where there are none.

    Raises:
        InputError: a variable of JAX's own has a form at which it would only print a traceback.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("GLOG_minloglevel", "2")
    os.environ.setdefault(MEMORY_FRACTION, str(compiler_options.MEMORY_FRACTION["cuda"]))
    if not re.fullmatch(r"\d+(\.\d*)?|\.\d+", os.environ[MEMORY_FRACTION], re.ASCII):
        raise InputError(
            MEMORY_FRACTION,
            f"is {os.environ[MEMORY_FRACTION]!r}",
            "give a number such as 0.75, or unset it",
        )
    if not accelerators.attached():
        # The CUDA compiler alone would otherwise be tried as a device, and complain.
        os.environ.setdefault("JAX_PLATFORMS", "cpu")
    if environment.LIFELINE.get():
        # The kernel ends this process with its parent even while it is stopped; where that is not
        # Linux, the end of standard input does while it runs.
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL))
        threading.Thread(target=_end_with_parent, daemon=True).start()


def attached() -> dict[str, Any]:
    """Returns platform, count and kinds of the devices that JAX finds here.

    It is found out in another process: to look is to take the devices' memory.
    """
    if not accelerators.attached():
        return {"platform": "cpu", "count": 0, "kinds": []}
    found = subprocess.run(
        [sys.executable, "-m", "exajax", "doctor", "--json"], capture_output=True, text=True
    )
    if found.returncode:  # device files without a driver, say
        return {"platform": "cpu", "count": 0, "kinds": []}
    return dict(json.loads(found.stdout)["devices"])


def import_jax() -> None:
    """Imports JAX without what its CUDA compiler says to standard error while it is loaded.

    JAX loads the compiler when it first looks for devices. Where there are none it has nothing to
    say, and is loaded here.
    """
    sys.stderr.flush()
    kept = os.dup(2)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        import jax  # noqa: F401

        if not accelerators.attached():
            _load_compilers()
    except (ImportError, OSError, ValueError) as error:
        raise _refused(error) from error
    finally:
        os.dup2(kept, 2)
        os.close(kept)
    xla_flags.check()


def _load_compilers() -> None:
    """Loads the libraries of JAX's plugins, which are then not loaded once more."""
    try:
        import jax_plugins
    except ImportError:
        return
    for folder in jax_plugins.__path__:
        for library in Path(folder).glob("*/*_plugin.so"):
            with contextlib.suppress(OSError):
                ctypes.CDLL(str(library))


def devices() -> "list[jax.Device]":
    """Returns the devices of the job, which JAX starts at the first call.

    Raises:
        InputError: the platform that `JAX_PLATFORMS` asks for is not to be had.
    """
    import jax

    try:
        return jax.devices()
    except (RuntimeError, AssertionError) as error:  # a bare assertion where no GPU is attached
        asked = os.environ.get("JAX_PLATFORMS")
        # Where there are devices they may be busy, and free at the next attempt.
        if not asked or (accelerators.attached() and "known backends" not in str(error)):
            raise
        raise InputError(
            "JAX_PLATFORMS",
            f"is {asked}, and JAX finds no such device here ({_first_line(error)})",
            "unset it, or run where the devices and JAX's plugin for them are",
        ) from error


def _refused(error: Exception) -> InputError:
    """Returns what to tell a person of an error that importing JAX has raised."""
    names = re.findall(r"jax_[a-z0-9_]+", str(error).lower())
    setting = next((name.upper() for name in names if name.upper() in os.environ), None)
    if setting:
        return InputError(
            setting, f"is {os.environ[setting]!r}, which JAX does not take", "correct or unset it"
        )
    path = os.environ.get("LD_LIBRARY_PATH")
    if path and not isinstance(error, ModuleNotFoundError):
        fix = "unset it, or leave out the folders with other versions of these libraries"
        return InputError("LD_LIBRARY_PATH", f"JAX does not load ({_first_line(error)})", fix)
    return InputError("jax", f"does not load ({_first_line(error)})", "pip install exajax anew")


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)[:300]


def _end_with_parent() -> None:
    """Waits for the end of standard input, which only the death of the parent brings."""
    while os.read(0, 1024):
        pass
    os._exit(1)


def log_to(path: Path) -> None:
    """Sends what libraries write to standard error to a file; Python's own prints stay.

    JAX, XLA, absl and Gloo write lines for every process from C++, and tracebacks before the line
    that names a cause: on a thousand processes nobody could find that one.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a")
    except OSError:
        return  # a full disk: they go on to write where they did
    sys.stderr.flush()
    terminal = os.dup(2)
    with file:
        os.dup2(file.fileno(), 2)
    sys.stderr = os.fdopen(terminal, "w", buffering=1)
    logging.basicConfig(stream=os.fdopen(2, "w", buffering=1, closefd=False))
    global _LOG
    _LOG = path


def print_traceback() -> str:
    """Prints the traceback of the exception at hand, and returns where it can be read."""
    if _LOG is None:
        traceback.print_exc()
        return "above"
    with _LOG.open("a") as file:
        traceback.print_exc(file=file)
    return str(_LOG)


def claim_stdout(*, with_jax: bool = True) -> TextIO:
    """Returns standard output, and points file descriptor 1 at standard error for all others.

    Libraries write to standard output too, from C++; a command that promises one JSON object
    there must be the only one who can. Call it before anything imports JAX, which it does itself
    where the command needs JAX in any case.
    """
    sys.stdout.flush()
    ours = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    if with_jax:
        import_jax()
    return ours


def to_json(value: Any, indent: int | None = None) -> str:
    """Returns strict JSON: null for what is not a finite number."""
    return json.dumps(_finite(value), indent=indent, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _finite(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
