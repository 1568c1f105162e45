"""The cache of compiled training steps on disk: where it lies, and whether it was hit.

The cache is JAX's own. Programs for CPU devices lose the order of their collectives in it, which is
restored when they are read (`exajax.job.jax_cache`, `exajax.job.collective_order`).
"""

import contextlib
import hashlib
import os
import platform
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np

from exajax import units
from exajax.job import coordination, environment, jax_cache

T = TypeVar("T")

SETTINGS: Any = jax.config  # its attributes are added at run time

MIN_COMPILE_S = 1.0
"""Seconds; a program that compiles faster than this is not stored."""


@dataclass(frozen=True)
class Compilation:
    """Time that a program took to compile, and whether it came from the cache.

    Attributes:
        seconds: time to compile it, or to read it from the cache.
        cache: `hit`: read from the cache; `miss`: compiled, and stored if that took at least
            `MIN_COMPILE_S`; `off`: there is no cache.
    """

    seconds: float
    cache: str

    def __str__(self) -> str:
        verb = "read" if self.cache == "hit" else "compiled"
        return f"step {verb} in {units.show(self.seconds, 's')}, compilation cache {self.cache}"


def enable(overwrite: bool = False) -> str:
    """Turns the cache on for this process, before its first large compilation.

    It lies in the user's cache folder (`$XDG_CACHE_HOME/exajax/jax`, or `~/.cache/exajax/jax`), one
    folder for each kind of processor. JAX's own settings come first: `JAX_COMPILATION_CACHE_DIR`
    for another folder, `JAX_ENABLE_COMPILATION_CACHE=false` for none. In a job of several
    processes, all of them must call it.

    Args:
        overwrite: whether entries are never read, because they are not to be trusted, and replaced
            by what is compiled.

    Returns:
        The folder of the cache, or the reason why there is none.
    """
    if not SETTINGS.jax_enable_compilation_cache:
        return "JAX_ENABLE_COMPILATION_CACHE is false"
    if not SETTINGS.jax_compilation_cache_dir:
        root = environment.cache_folder()
        if root is None:
            SETTINGS.update("jax_enable_compilation_cache", False)
            return "no home folder is known"
        SETTINGS.update("jax_compilation_cache_dir", str(root / "jax" / host_kind()))
        SETTINGS.update("jax_persistent_cache_min_compile_time_secs", MIN_COMPILE_S)
    jax_cache.install(overwrite)
    folder = str(SETTINGS.jax_compilation_cache_dir)
    problem = None if "://" in folder else _folder_problem(Path(folder))
    if problem:
        SETTINGS.update("jax_enable_compilation_cache", False)
    return problem or folder


def _folder_problem(folder: Path) -> str | None:
    """Why a folder cannot be this job's cache, the same on all processes; None if it can."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        entries = " ".join(sorted(path.name for path in folder.glob("*-cache")))
        usable = os.access(folder, os.W_OK)
    except OSError:
        entries, usable = "", False
    if jax.process_count() > 1:
        digest = np.uint32(zlib.crc32(f"{usable} {entries}".encode()))
        with disabled():
            digests = coordination.gather(digest)
        if len(set(digests.tolist())) > 1:
            # Processes that compile for GPUs share the autotuning of kernels (XLA's
            # xla_gpu_shard_autotuning): the others would wait for one that reads its program.
            return f"the processes do not see the same files in {folder}"
    return None if usable else f"{folder} cannot be written"


def host_kind() -> str:
    """A short name of this processor's instruction set, such as `x86_64-1f3a9c2e`.

    Programs for a CPU are machine code for the processor that compiled them, and JAX's key does not
    name it: hosts with other processors that share the folder would read what they cannot run.
    """
    features = ""
    with contextlib.suppress(OSError), open("/proc/cpuinfo") as file:
        features = next((line for line in file if line.startswith(("flags", "Features"))), "")
    return f"{platform.machine()}-{hashlib.sha256(features.encode()).hexdigest()[:8]}"


def timed_compile(compile: Callable[[], T]) -> tuple[T, Compilation]:
    """Compiles one program, timed.

    Args:
        compile: compiles and returns the program.

    Returns:
        The program, and how long it took and whether it came from the cache.
    """
    events: list[str] = []

    def listen(event: str, **_: Any) -> None:
        events.append(event)

    jax.monitoring.register_event_listener(listen)
    begin_s = time.perf_counter()
    try:
        program = compile()
    finally:
        jax.monitoring.unregister_event_listener(listen)
    seconds = time.perf_counter() - begin_s
    return program, Compilation(seconds, jax_cache.outcome(events))


@contextlib.contextmanager
def disabled() -> Iterator[None]:
    """A context in which nothing is read from the cache or written to it.

    A program for described devices can be written but not read again: without the devices, JAX
    warns and compiles.
    """
    before = SETTINGS.jax_enable_compilation_cache
    SETTINGS.update("jax_enable_compilation_cache", False)
    jax_cache.settings_changed()
    try:
        yield
    finally:
        SETTINGS.update("jax_enable_compilation_cache", before)
        jax_cache.settings_changed()
