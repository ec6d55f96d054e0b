"""Packed tables on an object store: a sparse local copy of a limited number of their pages.

All files of a table have a place in one scratch file of the cache folder, which takes no room where
nothing was fetched, and which is mapped; so a gather reads a remote table as it reads a local one.
What a gather is about to touch is fetched first, many ranges at a time, each page checked as it
arrives. Where the limit is reached, pages that were used longest ago are given back to the file
system (their blocks are freed in the middle of the file) before others are fetched.

The scratch file has no name, so it goes with the process however that ends. Where a file system
cannot free parts of a file, the copy is kept in memory instead, under the same limit.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from threading import RLock
from typing import Any

import numpy as np
import numpy.typing as npt

from .errors import MissingFileError, PackedCorruptError, PackedError, ParameterError, StorageError
from .packed_header import PAGE_BYTES, PackedFile, pages_in
from .packed_pages import check_page, missing, page_runs, untouched_pages
from .remote_files import fetch_ranges
from .storage import Location, storing

__all__ = ["Mirror", "MirrorGuard", "MirroredFile"]

U64 = npt.NDArray[np.uint64]
I64 = npt.NDArray[np.int64]

_AHEAD_PAGES = 32  # 2 MiB: what a request is worth, where there is room for it
_FETCHED_BYTES = 64 << 20  # held beside the mirror while they are checked
_EVICTED_SHARE = 16  # of the limit, at a time


@dataclass(frozen=True)
class MirroredFile:
    """A file of a remote table; `address` is where its first byte would be in memory."""

    place: str
    record: PackedFile
    address: int


class Mirror:
    """The sparse copy; may be used from several threads, one of which reads at a time.

    Parameters
    ----------
    location : Location
        Of the table.
    records : sequence of PackedFile
    limit : int
        Bytes of pages that are kept.
    folder : path, optional
        Where the scratch file is made; the folder for temporary files when None.
    """

    def __init__(
        self,
        location: Location,
        records: Sequence[PackedFile],
        limit: int,
        folder: str | os.PathLike[str] | None = None,
    ) -> None:
        if limit < PAGE_BYTES:
            raise ParameterError(
                f"The 'cache_bytes' parameter must be an int in the range [{PAGE_BYTES}, inf). Got "
                f"{limit} instead."
            )
        self.location, self.records = location, list(records)
        self._limit = limit // PAGE_BYTES
        counts = [pages_in(record.bytes) for record in records]
        self.first = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)]).astype(np.int64)
        self._seen = np.zeros(int(self.first[-1]), dtype=bool)
        self._used = np.zeros(len(self._seen), dtype=np.int64)
        self._clock = self._since = 0
        self._kept = 0
        self._store = _store(max(1, len(self._seen)) * PAGE_BYTES, folder)
        self.lock = RLock()
        self._process = os.getpid()
        self.fetched_bytes = self.requests = 0

    @property
    def address(self) -> int:
        return self._store.address

    @property
    def kept_bytes(self) -> int:
        """Bytes of the pages that are here."""
        return self._kept * PAGE_BYTES

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Keep what is brought in the block until it ends."""
        if os.getpid() != self._process:  # both would free pages that the other one reads
            raise PackedError(
                f"{self.location} was opened before this process was forked. Open the table in the "
                "process that reads it, or start workers by 'spawn'."
            )
        with self.lock:
            self._clock += 1
            self._since = self._clock
            yield

    def bring(self, pages: I64) -> None:
        """See that pages are here, by their number in the mirror, ascending."""
        with self.lock:
            absent = pages[~self._seen[pages]]
            if len(absent):
                wanted = self._with_neighbours(absent)
                self._make_room(wanted, pages)
                for run in page_runs(wanted, _FETCHED_BYTES // PAGE_BYTES, self.first):
                    self._fetch(run, set(absent.tolist()))
            self._used[pages] = self._clock

    def _with_neighbours(self, absent: I64) -> I64:
        """Return pages and what stands around them, as much as makes a request worth its while."""
        file = np.searchsorted(self.first, absent, side="right") - 1
        start, stop = self.first[file], self.first[file + 1]
        begin, one = np.unique(
            start + (absent - start) // _AHEAD_PAGES * _AHEAD_PAGES, return_index=True
        )
        if len(begin) * _AHEAD_PAGES > self._limit // 4:
            return absent
        around = begin[:, None] + np.arange(_AHEAD_PAGES)
        pages = around[around < stop[one, None]]
        return pages[~self._seen[pages]]

    def _make_room(self, wanted: I64, pages: I64) -> None:
        over = self._kept + len(wanted) - self._limit
        if over <= 0:
            return
        old = self._seen & (self._used < self._since)
        old[pages] = False
        candidates = np.flatnonzero(old)
        if len(candidates) < over:
            needed = (self._kept - len(candidates) + len(wanted)) * PAGE_BYTES
            raise StorageError(
                f"{self.location}: rows that are read together touch {needed:,} bytes, and the "
                f"cache may hold {self._limit * PAGE_BYTES:,}. Give it more with cache_bytes, read "
                "fewer rows at a time, or pack the dataset in the order of the plan (--order)."
            )
        count = min(len(candidates), max(over, self._limit // _EVICTED_SHARE))
        oldest = np.argpartition(self._used[candidates], count - 1)[:count]
        gone = np.sort(candidates[oldest])
        for run in page_runs(gone, len(self._seen), self.first):
            for start, stop in run:
                self._store.free(start * PAGE_BYTES, stop * PAGE_BYTES)
        self._seen[gone] = False
        self._kept -= len(gone)

    def _fetch(self, runs: Sequence[tuple[int, int]], needed: set[int]) -> None:
        """Fetch runs of pages, none over the end of a file, and check each page.

        One that is damaged and that nobody asked for is as if it had not come.
        """
        asked = []
        for start, stop in runs:
            record, page = self._file_at(start)
            place = self.location.join(record.name).path
            end = min(record.bytes, (page + stop - start) * PAGE_BYTES)
            asked.append((place, page * PAGE_BYTES, end))
        try:
            found = fetch_ranges(asked, self.location.options)
        except MissingFileError as error:
            raise missing(str(error).split(": ")[0]) from None
        for (start, stop), data in zip(runs, found, strict=True):
            record, page = self._file_at(start)
            place = self.location.join(record.name).path
            view = memoryview(data)
            whole = np.ones(stop - start, dtype=bool)
            for number in range(stop - start):
                part = view[number * PAGE_BYTES : (number + 1) * PAGE_BYTES]
                try:
                    check_page(place, record, page + number, part)
                except PackedCorruptError:
                    if start + number in needed:
                        raise
                    whole[number] = False
            with storing("Keeping pages of a packed table", self._store.place):
                self._store.write(start * PAGE_BYTES, view)
            self._seen[start:stop] = whole
            self._used[start:stop] = self._clock
            self._kept += int(np.count_nonzero(whole))
            self.fetched_bytes += len(data)
        self.requests += len(runs)

    def _file_at(self, page: int) -> tuple[PackedFile, int]:
        index = int(np.searchsorted(self.first, page, side="right")) - 1
        return self.records[index], page - int(self.first[index])

    def file(self, index: int) -> MirroredFile:
        """Return one of the files as a gather sees it."""
        record = self.records[index]
        address = self.address + int(self.first[index]) * PAGE_BYTES
        return MirroredFile(self.location.join(record.name).path, record, address)


class MirrorGuard:
    """Brings the pages of one column before they are read; see `mapped.Guard`.

    Parameters
    ----------
    mirror : Mirror
    files : sequence of int
        The mirror's files of the column, one a chunk.

    Attributes
    ----------
    bytes_read : int
        Fetched for this column.
    """

    whole = False  # what is here now may be gone for the next request

    def __init__(self, mirror: Mirror, files: Sequence[int]) -> None:
        self._mirror, self._files = mirror, list(files)
        self.bytes_read = 0
        self._first = mirror.first[self._files]
        base = self._first * PAGE_BYTES + mirror.address
        self._base = base.astype(np.uint64)
        self.bytes_read = 0

    def reading(self) -> Any:
        return self._mirror.reading()

    def ensure(self, chunk: I64, address: U64, size: I64) -> None:
        # Pages that are here are named too: they are used now.
        nothing = np.zeros(int(self._mirror.first[-1]) + 1, dtype=bool)
        pages = untouched_pages(nothing, self._first, self._base, chunk, address, size)
        if len(pages):
            with self._mirror.lock:
                before = self._mirror.fetched_bytes
                self._mirror.bring(pages)
                self.bytes_read += self._mirror.fetched_bytes - before

    def check_all(self) -> None:
        raise PackedError(
            f"{self._mirror.location} is read over the network, so its columns do not lie in this "
            "machine's memory. Copy the table to a local disk first."
        )

    def whole_file(self, chunk: int) -> Any:
        """Return all bytes of a file, checked, in memory of their own."""
        record = self._mirror.records[self._files[chunk]]
        return self._pages(record, [(0, pages_in(record.bytes))])

    def frame(self, chunk: int) -> Any:
        """Return a buffer as long as a file in which all is there, checked, but the body."""
        record = self._mirror.records[self._files[chunk]]
        body, end = record.places.body
        last = pages_in(record.bytes)
        return self._pages(record, [(0, pages_in(body)), (end // PAGE_BYTES, last)])

    def _pages(self, record: PackedFile, runs: Sequence[tuple[int, int]]) -> Any:
        place = self._mirror.location.join(record.name).path
        buffer = np.frombuffer(mmap.mmap(-1, record.bytes), np.uint8)
        self.bytes_read += sum(min(b * PAGE_BYTES, record.bytes) - a * PAGE_BYTES for a, b in runs)
        asked = [(place, a * PAGE_BYTES, min(b * PAGE_BYTES, record.bytes)) for a, b in runs]
        found = fetch_ranges(asked, self._mirror.location.options)
        for (start, stop), data in zip(runs, found, strict=True):
            view = memoryview(data)
            for page in range(start, stop):
                at = (page - start) * PAGE_BYTES
                check_page(place, record, page, view[at : at + PAGE_BYTES])
            buffer[start * PAGE_BYTES : start * PAGE_BYTES + len(data)] = np.frombuffer(
                data, np.uint8
            )
        return buffer


# --- where the pages are --------------------------------------------------------------------------


class _FileStore:
    """A sparse file without a name."""

    def __init__(self, size: int, folder: Path) -> None:
        self.place = str(folder)
        with storing("Making the cache of a packed table", folder):
            folder.mkdir(parents=True, exist_ok=True)
            self._file = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115
            self._file.truncate(size)
        self._map = mmap.mmap(self._file.fileno(), size, access=mmap.ACCESS_READ)
        self.address = int(np.frombuffer(self._map, np.uint8).ctypes.data)
        self.write(0, memoryview(b"x"))
        self.free(0, min(size, PAGE_BYTES))  # fails here where it cannot be done

    def write(self, at: int, data: memoryview) -> None:
        while data:
            sent = os.pwrite(self._file.fileno(), data, at)
            data, at = data[sent:], at + sent

    def free(self, start: int, stop: int) -> None:
        punch = _fallocate()
        if punch is None or punch(self._file.fileno(), 3, start, stop - start):
            raise OSError(ctypes.get_errno(), "the file system cannot free parts of a file")


class _MemoryStore:
    """Memory that is only there where something was written."""

    place = "memory"

    def __init__(self, size: int) -> None:
        self._map = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._data = np.frombuffer(self._map, np.uint8)
        self.address = int(self._data.ctypes.data)

    def write(self, at: int, data: memoryview) -> None:
        self._data[at : at + len(data)] = np.frombuffer(data, np.uint8)

    def free(self, start: int, stop: int) -> None:
        self._map.madvise(mmap.MADV_DONTNEED, start, stop - start)


def _store(size: int, folder: str | os.PathLike[str] | None) -> _FileStore | _MemoryStore:
    where = Path(tempfile.gettempdir() if folder is None else folder)
    with suppress(OSError):
        return _FileStore(size, where)
    return _MemoryStore(size)


@cache
def _fallocate() -> Any:
    """Return Linux's fallocate, which frees blocks in the middle of a file; None elsewhere."""
    if not sys.platform.startswith("linux"):
        return None
    function = ctypes.CDLL(None, use_errno=True).fallocate
    function.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
    return function
