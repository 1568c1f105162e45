"""What a process settles before JAX is imported: its log level, platform, standard output, end."""

import contextlib
import ctypes
import json
import math
import os
import signal
import subprocess
import sys
import threading
from typing import Any, TextIO

from exajax import accelerators, xla

LIFELINE = "EXAJAX_LIFELINE"
"""Set by a parent whose death must end this process; its standard input is the line."""

PR_SET_PDEATHSIG = 1
"""prctl(2): the signal that a process gets when its parent ends."""


def prepare() -> None:
    """Quiets the libraries, and keeps JAX from looking for accelerators where there are none."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("GLOG_minloglevel", "2")
    os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", str(xla.MEMORY_FRACTION["cuda"]))
    if not accelerators.attached():
        # The CUDA compiler alone would otherwise be tried as a device, and complain.
        os.environ.setdefault("JAX_PLATFORMS", "cpu")
    if os.environ.get(LIFELINE):
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
    """Imports JAX without what its CUDA compiler says to standard error while it is loaded."""
    sys.stderr.flush()
    kept = os.dup(2)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        import jax  # noqa: F401
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _end_with_parent() -> None:
    """Waits for the end of standard input, which only the death of the parent brings."""
    while os.read(0, 1024):
        pass
    os._exit(1)


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
