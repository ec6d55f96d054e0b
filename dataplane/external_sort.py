"""Sorting more rows than memory holds, by buckets on disk.

Records of two key words and a value are dealt to buckets, each a stretch of the order, as they
come; then the buckets are read one after another, sorted in memory, and removed. Whoever adds
records says about where in the order each belongs, which makes the buckets even where the keys are
known to be. A bucket that is larger than the memory all the same is dealt again, by the next eight
bits in which its keys differ; one whose keys are all equal needs no sorting, for records stay in
the order in which they came.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .storage import storing

__all__ = ["RECORD_BYTES", "SORTED_BYTES", "ExternalSort"]

U64 = npt.NDArray[np.uint64]
Records = npt.NDArray[np.void]

RECORD_BYTES = 24
"""Bytes a record on disk."""

SORTED_BYTES = 80
"""Bytes a record in memory while its bucket is sorted."""

_BUCKETS = 256  # at most: as many files are written at a time
_SLACK = 1.25  # how much smaller than the memory a bucket is meant to be
_CHUNK = 1 << 18  # records that are given out or dealt again at a time
_RECORD = np.dtype([("first", "<u8"), ("second", "<u8"), ("value", "<u8")])
_WHAT = "Sorting rows on disk"


class ExternalSort:
    """Sorts records by (first, second); equal ones stay in the order in which they came.

    Parameters
    ----------
    folder : Path
        For the buckets.
    rows : int
        About how many records will come.
    memory : int
        Bytes that sorting may take, beside chunks of the records that come and go.
    """

    def __init__(self, folder: Path, *, rows: int, memory: int) -> None:
        self._folder = folder
        self._limit = max(1, memory // SORTED_BYTES)
        self._chunk = min(_CHUNK, self._limit)
        count = min(_BUCKETS, int(rows * _SLACK) // self._limit + 1)
        self._buckets = [_Bucket(folder) for _ in range(count)]

    def add(
        self, first: U64, second: U64, value: npt.NDArray[np.integer], where: npt.NDArray[Any]
    ) -> None:
        """Add records.

        Parameters
        ----------
        first, second : uint64, shape (k,)
            The keys.
        value : integers, shape (k,)
        where : floats, shape (k,)
            About where in the order a record belongs, from 0 to 1; must not descend with the keys.
        """
        records = np.empty(len(first), dtype=_RECORD)
        records["first"], records["second"], records["value"] = first, second, value
        last = len(self._buckets) - 1
        _deal(records, np.minimum((where * (last + 1)).astype(np.int64), last), self._buckets)

    def sorted(self) -> Iterator[tuple[U64, U64, U64]]:
        """Yield (first, second, value) in order, in chunks; the buckets go as they are read."""
        for bucket in self._buckets:
            if bucket.rows:
                yield from self._sorted(bucket)

    def _sorted(self, bucket: _Bucket) -> Iterator[tuple[U64, U64, U64]]:
        if bucket.rows > self._limit:
            word, low, high = self._spread(bucket)
            if high > low:
                for smaller in self._dealt_again(bucket, word, low, high):
                    if smaller.rows:
                        yield from self._sorted(smaller)
                return
            chunks = bucket.chunks(self._chunk)
        else:
            chunks = self._in_memory(bucket)
        for part in chunks:
            yield part["first"], part["second"], part["value"]
        bucket.remove()

    def _in_memory(self, bucket: _Bucket) -> Iterator[Records]:
        records = bucket.read(0, bucket.rows)
        order = np.lexsort((records["second"], records["first"]))
        for start in range(0, len(order), self._chunk):
            yield records[order[start : start + self._chunk]]

    def _spread(self, bucket: _Bucket) -> tuple[str, int, int]:
        """Return the first key in which a bucket's records differ, its least and its greatest."""
        word, low, high = "second", 0, 0
        for word in ("first", "second"):
            ends = [(int(p[word].min()), int(p[word].max())) for p in bucket.chunks(self._chunk)]
            low, high = min(a for a, _ in ends), max(b for _, b in ends)
            if low < high:
                break
        return word, low, high

    def _dealt_again(self, bucket: _Bucket, word: str, low: int, high: int) -> list[_Bucket]:
        shift = max(0, (high - low).bit_length() - 8)
        smaller = [_Bucket(self._folder) for _ in range(((high - low) >> shift) + 1)]
        for part in bucket.chunks(self._chunk):
            which = (part[word] - np.uint64(low)) >> np.uint64(shift)
            _deal(part, which.astype(np.int64), smaller)
        bucket.remove()
        return smaller


class _Bucket:
    """A file of records."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / f"bucket-{uuid.uuid4().hex}"
        self.rows = 0

    def append(self, records: Records) -> None:
        data = records.view(np.uint8).data
        with storing(_WHAT, self._path), open(self._path, "ab", buffering=0) as file:
            while data:
                data = data[file.write(data) :]
        self.rows += len(records)

    def read(self, start: int, stop: int) -> Records:
        with storing(_WHAT, self._path), open(self._path, "rb") as file:
            file.seek(start * RECORD_BYTES)
            found: Records = np.fromfile(file, dtype=_RECORD, count=stop - start)
        return found

    def chunks(self, rows: int) -> Iterator[Records]:
        for start in range(0, self.rows, rows):
            yield self.read(start, min(start + rows, self.rows))

    def remove(self) -> None:
        self._path.unlink(missing_ok=True)


def _deal(records: Records, which: npt.NDArray[Any], buckets: list[_Bucket]) -> None:
    """Append records to the buckets of their numbers."""
    numbers = which.astype(np.uint8)  # numpy sorts these by counting
    order = np.argsort(numbers, kind="stable")
    counts = np.bincount(numbers, minlength=len(buckets))
    together, start = records[order], 0
    for bucket, count in zip(buckets, counts.tolist(), strict=True):
        if count:
            bucket.append(together[start : start + count])
            start += count
