"""Set-up of a process before JAX is imported: log levels, platform, standard output, lifeline."""

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
"""Variable of JAX: the share of a GPU's memory that it reserves. JAX prints a traceback unless its
text is a number."""


_LOG: Path | None = None
"""File that `log_libraries_to` writes to, None before it is called."""


def prepare_process() -> None:
    """Sets log levels and JAX's platform, and ties this process to its parent where it has one.

    Raises:
        InputError: a variable of JAX has a form at which JAX would print a traceback.
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
    if not accelerators.are_attached():
        # JAX would otherwise try the CUDA plugin, which is there for compiling, and log an error.
        os.environ.setdefault("JAX_PLATFORMS", "cpu")
    if environment.LIFELINE.get():
        # Linux kills this process with its parent, even while it is stopped; elsewhere it ends when
        # its standard input does, if it is running.
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL))
        threading.Thread(target=_end_with_parent, daemon=True).start()


def attached_devices() -> dict[str, Any]:
    """Platform, count and kinds of the devices that are attached to this machine.

    Another process asks JAX for them, because JAX reserves the memory of the devices it lists.
    """
    if not accelerators.are_attached():
        return {"platform": "cpu", "count": 0, "kinds": []}
    doctor = subprocess.run(
        [sys.executable, "-m", "exajax", "doctor", "--json"], capture_output=True, text=True
    )
    if doctor.returncode:  # such as device files without a driver
        return {"platform": "cpu", "count": 0, "kinds": []}
    return dict(json.loads(doctor.stdout)["devices"])


def import_jax() -> None:
    """Imports JAX with standard error closed, to which its CUDA plugin writes while it is loaded.

    JAX loads the plugin when it first looks for devices. Without accelerators its messages mean
    nothing, so that the plugin is loaded here.

    Raises:
        InputError: JAX does not load, or XLA refuses `XLA_FLAGS`.
    """
    sys.stderr.flush()
    terminal = os.dup(2)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        import jax  # noqa: F401

        if not accelerators.are_attached():
            _load_plugins()
    except (ImportError, OSError, ValueError) as error:
        raise _import_error(error) from error
    finally:
        os.dup2(terminal, 2)
        os.close(terminal)
    xla_flags.check()


def _load_plugins() -> None:
    """Loads the shared libraries of JAX's plugins; the loader does not load a library twice."""
    try:
        import jax_plugins
    except ImportError:
        return
    for folder in jax_plugins.__path__:
        for library in Path(folder).glob("*/*_plugin.so"):
            with contextlib.suppress(OSError):
                ctypes.CDLL(str(library))


def job_devices() -> "list[jax.Device]":
    """All devices of the job, of every process; JAX initializes them at the first call.

    Raises:
        InputError: the platform that `JAX_PLATFORMS` names is not available.
    """
    import jax

    try:
        return jax.devices()
    except (RuntimeError, AssertionError) as error:  # an assertion fails where no GPU is attached
        platforms = os.environ.get("JAX_PLATFORMS")
        # Attached devices may be busy now and free at the next attempt, which is no bad input.
        if not platforms or (accelerators.are_attached() and "known backends" not in str(error)):
            raise
        raise InputError(
            "JAX_PLATFORMS",
            f"is {platforms}, and JAX finds no such device here ({_first_line(error)})",
            "unset it, or run where the devices and JAX's plugin for them are",
        ) from error


def _import_error(error: Exception) -> InputError:
    """The input error for an exception that importing JAX has raised, and the variable to blame."""
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
    """Ends this process when its standard input does, which is when its parent has died."""
    while os.read(0, 1024):
        pass
    os._exit(1)


def log_libraries_to(path: Path) -> None:
    """Redirects file descriptor 2 and Python's root logger to a file; `sys.stderr` stays.

    JAX, XLA, absl and Gloo write to standard error from C++ in every process, which would hide the
    one line that names a cause among thousands.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a")
    except OSError:
        return  # on a full disk the terminal still takes them
    sys.stderr.flush()
    terminal = os.dup(2)
    with file:
        os.dup2(file.fileno(), 2)
    sys.stderr = os.fdopen(terminal, "w", buffering=1)
    logging.basicConfig(stream=os.fdopen(2, "w", buffering=1, closefd=False))
    global _LOG
    _LOG = path


def print_traceback() -> str:
    """Writes the traceback of the current exception, and returns where it can be read."""
    if _LOG is None:
        traceback.print_exc()
        return "above"
    with _LOG.open("a") as file:
        traceback.print_exc(file=file)
    return str(_LOG)


def claim_stdout(*, with_jax: bool = True) -> TextIO:
    """The process's standard output; file descriptor 1 is redirected to standard error.

    Libraries write to standard output from C++, where a command that promises one JSON object must
    be the only writer. To be called before JAX is imported.

    Args:
        with_jax: whether to import JAX as well, by `import_jax`.
    """
    sys.stdout.flush()
    stdout = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    if with_jax:
        import_jax()
    return stdout


def json_text(value: Any, indent: int | None = None) -> str:
    """Strict JSON of a value; NaN and infinities become null."""
    return json.dumps(_finite(value), indent=indent, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _finite(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
