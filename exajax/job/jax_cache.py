"""JAX's folder of compiled programs, from the inside: what it gives back is put in order first.

JAX has public settings for where its cache lies and what is kept in it, and no public way to see or
change what is read. Relied on, in jax 0.10.2 to 0.12.0: `jax._src.compilation_cache` opens its
folder by `get_file_cache(path)`, which returns the folder as a `CacheInterface` and its path, or
None; it packs and unpacks what is kept (`compress_executable`, `combine_executable_and_time` and
their reverse); the file of a key is `KEY-cache`; `reset_cache` makes it read its settings anew; the
events `compile_requests_use_cache` and `cache_hits` say whether a program was read.

A release that moves a name fails when exajax loads it, before anything is trained. One that calls
something else than `get_file_cache` would leave programs for a CPU out of order: a test reads one
back and looks at its order. Renamed events would only report the cache as `off`
(`tests/job/test_jax_cache.py`).
"""

import logging
from collections.abc import Callable, Sequence
from typing import Any

import jax
from etils import epath
from jax._src import compilation_cache as internals
from jax._src.compilation_cache_interface import CacheInterface
from jax.experimental.compilation_cache import compilation_cache

from exajax.job import collective_order

LOGGER = logging.getLogger(__name__)

Folder = tuple[CacheInterface, str]

OPEN: Callable[[str], Folder | None] = internals.get_file_cache
"""JAX's own way to open its folder."""


class Store(CacheInterface):
    """JAX's folder of compiled programs, which gives back what can be run.

    Args:
        kept: JAX's own.
        folder: where it lies.
        anew: whether nothing is read, and what is compiled takes the place of what was there.
    """

    def __init__(self, kept: Any, folder: str, anew: bool) -> None:
        self._kept, self._path, self._anew = kept, epath.Path(folder), anew

    def get(self, key: str) -> bytes | None:
        """Returns the compressed program of a key, None if it has to be compiled."""
        entry: bytes | None = None if self._anew else self._kept.get(key)
        if entry is None or jax.default_backend() != "cpu":
            return entry
        try:
            program, seconds = unpacked(entry)
            in_order = collective_order.put_back(program)
        except Exception as error:  # of the decompression there are several kinds
            LOGGER.warning("%s is compiled anew: what the cache has of it is %s", key, error)
            return None
        return entry if in_order is program else packed(in_order, seconds)

    def put(self, key: str, value: bytes) -> None:
        """Keeps the compressed program of a key."""
        if self._anew:  # JAX writes over no file
            (self._path / f"{key}-cache").unlink(missing_ok=True)
        self._kept.put(key, value)


def keep(anew: bool = False) -> None:
    """Lets JAX keep compiled programs in a `Store`, wherever its settings say."""

    def opened(path: str) -> Folder | None:
        folder = OPEN(path)
        return folder and (Store(folder[0], path, anew), folder[1])

    internals.get_file_cache = opened
    settings_changed()


def settings_changed() -> None:
    """Lets JAX read the settings of its cache anew; it reads them once."""
    compilation_cache.reset_cache()


def unpacked(entry: bytes) -> tuple[bytes, int]:
    """Returns the serialized program in an entry of the cache, and the seconds it compiled for."""
    data = internals.decompress_executable(entry)
    program, seconds = internals.extract_executable_and_time(data)
    return program, seconds


def packed(program: bytes, seconds: int) -> bytes:
    """Returns the entry of the cache for a serialized program."""
    data = internals.combine_executable_and_time(program, seconds)
    return bytes(internals.compress_executable(data))


def outcome(events: Sequence[str]) -> str:
    """Returns how a program was made, by the events that JAX has recorded meanwhile.

    Returns:
        `hit` it was read, `miss` it was compiled, `off` there is no cache.
    """
    names = {event.rpartition("/")[2] for event in events}
    if "compile_requests_use_cache" not in names:
        return "off"
    return "hit" if "cache_hits" in names else "miss"
