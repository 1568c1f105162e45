"""JAX's profiler around one step."""

import contextlib
import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import jax

from exajax.train.hooks import Hooks


@dataclass(frozen=True)
class Profile(Hooks):
    """One step traced by JAX's profiler, the same on every process.

    Attributes:
        folder: where the trace goes; None lets another process trace, at the same step.
        after: steps of the call of `exajax.fit` before it.
    """

    folder: Path | None
    after: int = 5

    def around(self, updates: int) -> AbstractContextManager[None] | None:
        """Returns the profiler when the step is due."""
        return watching(self.folder) if updates == self.after else None


@contextlib.contextmanager
def watching(folder: Path | None) -> Iterator[None]:
    """Traces what runs inside into a folder, in place of an earlier trace; None traces nothing.

    TensorBoard's profile plugin reads the folder. Python is left out of it: a step is one call.
    """
    if folder is None:
        yield
        return
    shutil.rmtree(folder, ignore_errors=True)
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0
    with jax.profiler.trace(str(folder), profiler_options=options):
        yield
