"""Keeps compiled steps on disk, so that a run that compiles the same again starts at once.

The cache is JAX's own; here is where it lies, whether it helped, and where it must not be used. XLA
leaves the order of collectives out of a program for CPU devices: it is put back when the program is
read (`exajax.job.jax_cache`, `exajax.job.collective_order`).
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

SETTINGS: Any = jax.config  # its names are made at run time

MIN_COMPILE_S = 1.0
"""What compiles faster is not worth a file."""


@dataclass(frozen=True)
class Compilation:
    """How a program was made.

    Attributes:
        seconds: time to compile it, or to read it back.
        cache: `hit` it was read back, `miss` it was compiled (and is kept, if that took at least
            `MIN_COMPILE_S`), `off` there is no cache.
    """

    seconds: float
    cache: str

    def __str__(self) -> str:
        verb = "read" if self.cache == "hit" else "compiled"
        return f"step {verb} in {units.show(self.seconds, 's')}, compilation cache {self.cache}"


def enable(anew: bool = False) -> str:
    """Turns the cache on for this process, before its first large compilation.

    It lies in the user's cache folder (`$XDG_CACHE_HOME/exajax/jax`, or `~/.cache/exajax/jax`), one
    folder for each kind of host. JAX's own settings come first: `JAX_COMPILATION_CACHE_DIR` for
    another folder, `JAX_ENABLE_COMPILATION_CACHE=false` for none. In a job of several processes,
    all of them must call it.

    Args:
        anew: whether nothing is read, because what is there is not to be trusted, and what is
            compiled takes its place.

    Returns:
        Where the cache is, or why there is none.
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
    jax_cache.keep(anew)
    folder = str(SETTINGS.jax_compilation_cache_dir)
    problem = None if "://" in folder else _problem(Path(folder))
    if problem:
        SETTINGS.update("jax_enable_compilation_cache", False)
    return problem or folder


def _problem(folder: Path) -> str | None:
    """Returns why a folder cannot be the cache of this job, on all its processes alike."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        entries = " ".join(sorted(path.name for path in folder.glob("*-cache")))
        usable = os.access(folder, os.W_OK)
    except OSError:
        entries, usable = "", False
    if jax.process_count() > 1:
        seen = np.uint32(zlib.crc32(f"{usable} {entries}".encode()))
        with disabled():
            everyone = coordination.gather(seen)
        if len(set(everyone.tolist())) > 1:
            # Processes that compile for GPUs share out the tuning of kernels among them (XLA's
            # xla_gpu_shard_autotuning): one that reads instead would leave the others waiting.
            return f"the processes do not see the same files in {folder}"
    return None if usable else f"{folder} cannot be written"


def host_kind() -> str:
    """Returns a short name for what this host's processor can do.

    Programs for a CPU are machine code for the processor that compiled them, and JAX's key does not
    name it: on a folder that unlike hosts share they would read what they cannot run.
    """
    can = ""
    with contextlib.suppress(OSError), open("/proc/cpuinfo") as file:
        can = next((line for line in file if line.startswith(("flags", "Features"))), "")
    return f"{platform.machine()}-{hashlib.sha256(can.encode()).hexdigest()[:8]}"


def watch(compile: Callable[[], T]) -> tuple[T, Compilation]:
    """Returns what `compile`, which compiles one program, returns, and how it was made."""
    events: list[str] = []

    def listen(event: str, **_: Any) -> None:
        events.append(event)

    jax.monitoring.register_event_listener(listen)
    begin_s = time.perf_counter()
    try:
        made = compile()
    finally:
        jax.monitoring.unregister_event_listener(listen)
    seconds = time.perf_counter() - begin_s
    return made, Compilation(seconds, jax_cache.outcome(events))


@contextlib.contextmanager
def disabled() -> Iterator[None]:
    """Within, nothing is read from the cache or written to it.

    A program for devices that are not there can be written and not read back: without devices,
    JAX warns and compiles again.
    """
    before = SETTINGS.jax_enable_compilation_cache
    SETTINGS.update("jax_enable_compilation_cache", False)
    jax_cache.settings_changed()
    try:
        yield
    finally:
        SETTINGS.update("jax_enable_compilation_cache", before)
        jax_cache.settings_changed()
