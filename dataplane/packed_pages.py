"""Pages: no row of a damaged one is ever delivered, and a page is checked once.

A page is `PAGE_BYTES` of a file; its checksum (XXH3-128) stands in the table's file of page
checksums. The bytes of a local table are mapped; when a gather first touches a page it is hashed.
Once a column was seen whole nothing is looked at any more.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .errors import PackedCorruptError, StorageError
from .packed_header import PAGE_BYTES, PAGE_SUM, PackedFile, pages_in
from .residency import drop_resident

__all__ = [
    "MappedFile",
    "PageGuard",
    "check_file",
    "check_page",
    "missing",
    "page_runs",
    "page_sums",
    "untouched_pages",
    "wrong_size",
]

_READ_BYTES = 16 * PAGE_BYTES

U64 = npt.NDArray[np.uint64]
I64 = npt.NDArray[np.int64]


class MappedFile:
    """A file of a local table as it lies in memory."""

    def __init__(self, path: Path, record: PackedFile) -> None:
        self.place, self.record = str(path), record
        try:
            with open(path, "rb") as file:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except FileNotFoundError:
            raise missing(self.place) from None
        except (OSError, ValueError) as error:
            raise StorageError(f"{path} cannot be read: {error}. Check the storage.") from error
        if len(self._map) != record.bytes:
            raise wrong_size(self.place, record.bytes, len(self._map))
        self.data = np.frombuffer(self._map, np.uint8)
        self.address = int(self.data.ctypes.data)

    def expect(self, start: int, stop: int) -> None:
        """Say that a range of whole pages is about to be read."""
        self._map.madvise(mmap.MADV_WILLNEED, start, min(stop, len(self._map)) - start)

    def release(self) -> None:
        """Drop what was read from this process's memory; the operating system may still have it."""
        drop_resident(self.address, self.address + self.record.bytes)

    def check_page(self, page: int) -> None:
        """Raise `PackedCorruptError` unless a page is what it should be."""
        check_page(self.place, self.record, page, self.data[_page(page)].data)


def _page(page: int) -> slice:
    return slice(page * PAGE_BYTES, (page + 1) * PAGE_BYTES)


def check_page(place: str, record: PackedFile, page: int, data: Any) -> None:
    """Raise `PackedCorruptError` unless the bytes of a page are what they should be."""
    import xxhash

    found, expected = xxhash.xxh3_128_digest(data), _sum_of(record, page)
    if found != expected:
        raise corrupt(place, page, expected, found)


def _sum_of(record: PackedFile, page: int) -> bytes:
    return record.pages[page * PAGE_SUM : (page + 1) * PAGE_SUM]


def page_sums(file: Any) -> tuple[bytes, int]:
    """Return (checksums of all pages, bytes) of what is left to read of a binary file."""
    import xxhash

    sums, size = [], 0
    buffer = memoryview(bytearray(_READ_BYTES))
    while count := _read_into(file, buffer):
        sums += [
            xxhash.xxh3_128_digest(buffer[at : min(at + PAGE_BYTES, count)])
            for at in range(0, count, PAGE_BYTES)
        ]
        size += count
    return b"".join(sums), size


def _read_into(file: Any, buffer: memoryview) -> int:
    """Fill a buffer, but at the end of the file."""
    filled = 0
    while filled < len(buffer):
        count = file.readinto(buffer[filled:])
        if not count:
            break
        filled += count
    return filled


def check_file(place: str, record: PackedFile, file: Any) -> None:
    """Raise `PackedCorruptError` unless all bytes of an open file are what they should be."""
    pages, size = page_sums(file)
    if size != record.bytes:
        raise wrong_size(place, record.bytes, size)
    for page in range(0 if pages == record.pages else len(pages) // PAGE_SUM):
        found, expected = pages[page * PAGE_SUM : (page + 1) * PAGE_SUM], _sum_of(record, page)
        if found != expected:
            raise corrupt(place, page, expected, found)


def corrupt(place: str, page: int, expected: bytes, found: bytes) -> PackedCorruptError:
    return PackedCorruptError(
        f"{place}, page {page} (bytes {page * PAGE_BYTES:,} and on): expected checksum "
        f"{expected.hex()}, found {found.hex()}. No row of it was delivered; copy the table again "
        "or pack the dataset again."
    )


def missing(place: str) -> PackedCorruptError:
    return PackedCorruptError(
        f"{place} is missing; the packed table names it. Copy the table again or pack the dataset "
        "again."
    )


def wrong_size(place: str, expected: int, found: int) -> PackedCorruptError:
    return PackedCorruptError(
        f"{place}: expected {expected:,} bytes, found {found:,}. The file is truncated or was "
        "replaced; copy the table again or pack the dataset again."
    )


class PageGuard:
    """The pages of one column of a local table; may be asked from several threads.

    Parameters
    ----------
    files : sequence of MappedFile
        One a chunk.

    Attributes
    ----------
    bytes_read : int
        Of the pages that were checked.
    """

    def __init__(self, files: Sequence[MappedFile]) -> None:
        self._files = files
        counts = np.array([pages_in(f.record.bytes) for f in files], dtype=np.int64)
        self._first = np.concatenate([[0], np.cumsum(counts)])
        self._base = np.array([f.address for f in files], dtype=np.uint64)
        self._seen = np.zeros(int(self._first[-1]), dtype=bool)
        self._left = len(self._seen)
        self._asked = 0
        self.bytes_read = 0

    @property
    def whole(self) -> bool:
        return self._left == 0

    def reading(self) -> AbstractContextManager[Any]:
        return nullcontext()

    def ensure(self, chunk: I64, address: U64, size: I64) -> None:
        """Check the pages of some ranges that were not checked yet; see `mapped.Guard`."""
        pages = untouched_pages(self._seen, self._first, self._base, chunk, address, size)
        if len(pages):
            self.check(pages)
        self._asked += 1
        if self._asked % 64 == 0 or len(pages):
            self._left = len(self._seen) - int(np.count_nonzero(self._seen))

    def check(self, pages: I64) -> None:
        """Check pages, ascending, by their number in the column."""
        file = np.searchsorted(self._first, pages, side="right") - 1
        local = pages - self._first[file]
        # What is on the disk only is asked for in long runs, before it is hashed page by page.
        for runs in page_runs(pages, len(self._seen) or 1, self._first):
            for start, stop in runs:
                index = int(np.searchsorted(self._first, start, side="right")) - 1
                before = int(self._first[index])
                self._files[index].expect(
                    (start - before) * PAGE_BYTES, (stop - before) * PAGE_BYTES
                )
        for number, index, page in zip(pages.tolist(), file.tolist(), local.tolist(), strict=True):
            self._files[index].check_page(page)
            self._seen[number] = True
        self.bytes_read += PAGE_BYTES * len(pages)

    def check_all(self) -> None:
        """Check what was not checked yet of the column."""
        for chunk in range(len(self._files)):
            self.whole_file(chunk)
        self._left = 0

    def whole_file(self, chunk: int) -> Any:
        """Return all bytes of a file, checked."""
        first, stop = self._first[chunk], self._first[chunk + 1]
        self.check(first + np.flatnonzero(~self._seen[first:stop]))
        return self._files[chunk].data

    def frame(self, chunk: int) -> Any:
        """Return the bytes of a file; all but those of its body were checked."""
        first, record = int(self._first[chunk]), self._files[chunk].record
        body, end = record.places.body
        wanted = np.ones(pages_in(record.bytes), dtype=bool)
        wanted[pages_in(body) : end // PAGE_BYTES] = False
        wanted &= ~self._seen[first : first + len(wanted)]
        self.check(first + np.flatnonzero(wanted))
        return self._files[chunk].data


def page_runs(pages: I64, most: int, cuts: I64) -> Iterator[list[tuple[int, int]]]:
    """Yield runs (first page, page after the last) of ascending pages, some runs at a time.

    Parameters
    ----------
    pages : int64, shape (k,)
    most : int
        Pages that are yielded together, and that a run has.
    cuts : int64
        Pages at which a new run begins: where the files do.
    """
    file = np.searchsorted(cuts, pages, side="right")
    ends = np.flatnonzero((np.diff(pages) != 1) | (np.diff(file) != 0)) + 1
    together: list[tuple[int, int]] = []
    held = 0
    for run in np.split(pages, ends):
        for at in range(0, len(run), most):
            piece = run[at : at + most]
            if together and held + len(piece) > most:
                yield together
                together, held = [], 0
            together.append((int(piece[0]), int(piece[-1]) + 1))
            held += len(piece)
    if together:
        yield together


def untouched_pages(
    seen: npt.NDArray[np.bool_], first: I64, base: U64, chunk: I64, address: U64, size: I64
) -> I64:
    """Return the pages under some ranges of bytes that are not marked in `seen`, ascending.

    Parameters
    ----------
    seen : bool, shape (pages,)
    first : int64, shape (c,) or (c + 1,)
        Number of each chunk's first page.
    base : uint64, shape (c,)
        Address of each chunk's file.
    chunk : int64, shape (k,)
    address : uint64, shape (k,)
    size : int64, shape (k,)
        Empty ranges touch nothing.
    """
    if not size.all():
        kept = np.flatnonzero(size)
        chunk, address, size = chunk[kept], address[kept], size[kept]
    inside = (address - base[chunk]).view(np.int64)
    start = inside // PAGE_BYTES + first[chunk]
    stop = (inside + size - 1) // PAGE_BYTES + first[chunk]
    ends = ~(seen[start] & seen[stop])
    longer = np.flatnonzero(stop - start > 1)
    if not ends.any() and not len(longer):
        return np.empty(0, np.int64)
    wanted = [start[ends], stop[ends]]
    wanted += [np.arange(start[i], stop[i]) for i in longer]
    pages: I64 = np.unique(np.concatenate(wanted))
    return pages[~seen[pages]]
