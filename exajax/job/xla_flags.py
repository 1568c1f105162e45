"""Check of the environment's `XLA_FLAGS`, which XLA would answer by aborting the process.

XLA parses the variable when it is first asked for compiler options, and aborts on a flag that it
does not know. JAX has no public object that parses it without initializing the devices. Relied on,
in jaxlib 0.10.2 to 0.12.0: `jaxlib._jax.CompileOptions().executable_build_options.debug_options`
parses the flags, and the message on standard error has the line `... XLA_FLAGS: --flag` or
`... interpret value ...`. A release that moves the class fails with an `AttributeError` wherever
`XLA_FLAGS` is set; one that words the message differently gives a less precise reason
(`tests/job/test_environment.py`).
"""

import os
import warnings

from exajax.errors import InputError


def check() -> None:
    """Raises an `InputError` if XLA refuses `XLA_FLAGS`.

    A fork of this process parses them, since the parsing process may be aborted: JAX is loaded
    already, and no thread runs yet.
    """
    if not os.environ.get("XLA_FLAGS"):
        return
    from jaxlib import _jax

    options = _jax.CompileOptions
    reader, writer = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Python warns of forking, but the child runs no threads
        child = os.fork()
    if not child:
        os.dup2(writer, 2)
        _ = options().executable_build_options.debug_options
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, errors="replace") as file:
        messages = file.read().splitlines()
    _, status = os.waitpid(child, 0)
    if status:
        reasons = [x for x in messages if "XLA_FLAGS" in x or "interpret value" in x]
        lines = [line.rpartition("] ")[2] for line in reasons]
        why = next(iter(lines), "XLA aborts while it parses it")[:300]
        raise InputError(
            "XLA_FLAGS", f"XLA does not take it ({why})", "correct it, leave the flag out or unset"
        )
