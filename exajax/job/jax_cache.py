"""JAX's file cache of compiled programs, wrapped so that CPU programs are reordered when read.

JAX has public settings for the folder of its cache and for what is stored, but no public way to
inspect or change what is read. Relied on, in jax 0.10.2 to 0.12.0: `jax._src.compilation_cache`
opens its folder by `get_file_cache(path)`, which returns a `CacheInterface` and the path, or None;
it packs and unpacks entries (`compress_executable`, `combine_executable_and_time` and their
reverse); the file of a key is `KEY-cache`; `reset_cache` makes it read its settings again; the
events `compile_requests_use_cache` and `cache_hits` tell whether a program was read.

A release that moves a name fails when exajax imports it, before anything is trained. One that no
longer calls `get_file_cache` would leave CPU programs unordered: a test reads one and checks its
order. Renamed events would only report the cache as `off` (`tests/job/test_jax_cache.py`).
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
"""JAX's function that opens its folder."""


class OrderedCache(CacheInterface):
    """JAX's file cache of compiled programs, with the order of CPU collectives restored on reading.

    Args:
        files: JAX's file cache.
        folder: its folder.
        overwrite: whether entries are never read, and replaced by what is compiled.
    """

    def __init__(self, files: Any, folder: str, overwrite: bool) -> None:
        self._files, self._path, self._overwrite = files, epath.Path(folder), overwrite

    def get(self, key: str) -> bytes | None:
        """The compressed program of a key, None if it has to be compiled."""
        entry: bytes | None = None if self._overwrite else self._files.get(key)
        if entry is None or jax.default_backend() != "cpu":
            return entry
        try:
            program, seconds = unpacked(entry)
            ordered = collective_order.restore_order(program)
        except Exception as error:  # zlib and zstandard raise errors of their own
            LOGGER.warning("%s is compiled again: its entry in the cache is %s", key, error)
            return None
        return entry if ordered is program else packed(ordered, seconds)

    def put(self, key: str, value: bytes) -> None:
        """Stores the compressed program of a key."""
        if self._overwrite:  # JAX's cache does not replace an entry
            (self._path / f"{key}-cache").unlink(missing_ok=True)
        self._files.put(key, value)


def install(overwrite: bool = False) -> None:
    """Makes JAX read and write its file cache through an `OrderedCache`."""

    def opened(path: str) -> Folder | None:
        folder = OPEN(path)
        return folder and (OrderedCache(folder[0], path, overwrite), folder[1])

    internals.get_file_cache = opened
    settings_changed()


def settings_changed() -> None:
    """Makes JAX read the settings of its cache again, which it does only once by itself."""
    compilation_cache.reset_cache()


def unpacked(entry: bytes) -> tuple[bytes, int]:
    """The serialized program in an entry of the cache, and the seconds that compiling it took."""
    data = internals.decompress_executable(entry)
    program, seconds = internals.extract_executable_and_time(data)
    return program, seconds


def packed(program: bytes, seconds: int) -> bytes:
    """The entry of the cache for a serialized program."""
    data = internals.combine_executable_and_time(program, seconds)
    return bytes(internals.compress_executable(data))


def outcome(events: Sequence[str]) -> str:
    """`hit` if a program was read from the cache, `miss` if it was compiled, `off` without a cache.

    Args:
        events: those that JAX recorded meanwhile.
    """
    names = {event.rpartition("/")[2] for event in events}
    if "compile_requests_use_cache" not in names:
        return "off"
    return "hit" if "cache_hits" in names else "miss"
