"""Records of ArrayRecord shards, read through few open files whatever the number of shards."""

import concurrent.futures
import resource
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path

from array_record.python.array_record_module import ArrayRecordReader

from exajax.files.paths import is_too_many_open, too_many_open
from exajax.files.reading import Malformed

MOST_OPEN = 128
"""Shards that stay open, where the process may have four times as many files."""

THREADS = 16
"""Shards that are read at a time."""

RANDOM_ACCESS = "readahead_buffer_size:0,max_parallelism:0"
"""What ArrayRecord recommends for records that are read in no order."""

BUFFER_BYTES = 32 << 10


class Readers:
    """Open shards, those that were not used for longest are closed for others. Thread-safe."""

    def __init__(self) -> None:
        self._open: OrderedDict[Path, ArrayRecordReader] = OrderedDict()
        self._lock = threading.Lock()
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        self._most = max(1, min(MOST_OPEN, soft // 4))

    def read(
        self, wanted: Mapping[Path, Sequence[int]], records: Mapping[Path, int]
    ) -> list[bytes]:
        """Returns records, shard by shard.

        Args:
            wanted: the numbers of the records of each shard.
            records: how many each shard has to hold.

        Raises:
            InputError: no more files may be opened.
            Malformed: a shard is damaged, or holds another number of records.
        """

        def of_shard(path: Path) -> list[bytes]:
            return list(self._records(path, wanted[path], records[path]))

        if len(wanted) == 1:
            return of_shard(next(iter(wanted)))
        with concurrent.futures.ThreadPoolExecutor(min(THREADS, len(wanted))) as threads:
            return [record for found in threads.map(of_shard, wanted) for record in found]

    def _records(self, path: Path, numbers: Sequence[int], records: int) -> Sequence[bytes]:
        try:
            reader = self._reader(path)
            if not reader.ok():
                reader.read([0])  # raises what is wrong
            if reader.num_records() != records:
                problem = f"holds {reader.num_records()} sequences instead of {records}"
                raise Malformed(path.name, problem, "make it again with exajax tokenise")
            read: Sequence[bytes] = reader.read(list(numbers))
        except (OSError, RuntimeError, ValueError) as error:
            with self._lock:
                self._open.pop(path, None)
            if is_too_many_open(error):
                raise too_many_open(path, "data") from error
            raise Malformed(
                path.name,
                f"is damaged: {' '.join(str(error).split())[:200]}",
                "make it again with exajax tokenise",
            ) from error
        return read

    def _reader(self, path: Path) -> ArrayRecordReader:
        with self._lock:
            reader = self._open.pop(path, None)
            if reader is None:
                # A reader that a thread still uses is closed when that thread lets go of it.
                while len(self._open) >= self._most:
                    self._open.popitem(last=False)
                reader = ArrayRecordReader(
                    str(path), options=RANDOM_ACCESS, file_reader_buffer_size=BUFFER_BYTES
                )
            self._open[path] = reader
            return reader
