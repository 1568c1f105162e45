"""Whether XLA takes the `XLA_FLAGS` of the environment, before it ends the process that asks.

XLA reads the variable when it is first asked for compiler options, and aborts on a flag that it
does not know. JAX has no public object that reads it without starting the devices. Relied on, in
jaxlib 0.10.2 to 0.12.0: `jaxlib._jax.CompileOptions().executable_build_options.debug_options` reads
the flags, and the message on standard error has the line `... XLA_FLAGS: --flag` or `... interpret
value ...`. A release that moves the class fails for everybody who sets `XLA_FLAGS`, with an
`AttributeError`; one that words the message otherwise gives a less telling reason
(`tests/job/test_environment.py`).
"""

import os
import warnings

from exajax.errors import InputError


def check() -> None:
    """Raises an `InputError` if XLA does not take `XLA_FLAGS`.

    A copy of this process asks, as the one that asks may end: JAX is loaded, and nothing runs.
    """
    if not os.environ.get("XLA_FLAGS"):
        return
    from jaxlib import _jax

    options = _jax.CompileOptions
    reader, writer = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the copy has no threads is what is wanted
        child = os.fork()
    if not child:
        os.dup2(writer, 2)
        _ = options().executable_build_options.debug_options
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, errors="replace") as file:
        said = file.read()
    _, status = os.waitpid(child, 0)
    if status:
        telling = [x for x in said.splitlines() if "XLA_FLAGS" in x or "interpret value" in x]
        lines = [line.rpartition("] ")[2] for line in telling]
        why = next(iter(lines), "XLA ends where it reads it")[:300]
        raise InputError(
            "XLA_FLAGS", f"XLA does not take it ({why})", "correct it, leave the flag out or unset"
        )
