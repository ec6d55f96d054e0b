"""One value a row, by rank, in files: what a plan keeps of its rows between two stages.

A column is one file, or several one after another, of raw values. It is written and
read front to back in chunks, so neither takes memory that grows with the rows. Values at any ranks
come through a map whose pages are given back as the reading goes on; a column that is small enough
is read once and kept.
"""

from __future__ import annotations

import itertools
import math
import mmap
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import xxhash

from .errors import SelectionError
from .storage import storing

__all__ = ["CHUNK_ROWS", "ColumnWriter", "RowColumn", "Segment", "sum_counts"]

CHUNK_ROWS = 1 << 20
"""Rows that are held at a time. Sums over chunks are the same on any machine for it."""

_Kind: TypeAlias = tuple[np.dtype[Any], tuple[int, ...]]

_WINDOW = 16 << 20  # bytes of a map that may be in memory at a time


@dataclass(frozen=True)
class Segment:
    """One file of a column.

    Attributes
    ----------
    path : Path
    rows : int
    dtype : numpy.dtype
    shape : tuple of int
        Of one row's value.
    bytes : int
    checksum : str
        XXH3-128, in hex: it finds damage, not forgery.
    """

    path: Path
    rows: int
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    bytes: int
    checksum: str


class ColumnWriter:
    """Writes one file of values; use it as a context manager, which closes it.

    Parameters
    ----------
    path : Path
    what : str
        What is being written, for the message of a full disk.
    """

    def __init__(self, path: Path, what: str = "Writing intermediate results") -> None:
        self._path, self._what = path, what
        self._rows = self._bytes = 0
        self._kind: _Kind | None = None
        self._digest = xxhash.xxh3_128()
        with storing(what, path):
            self._file = open(path, "wb", buffering=0)  # noqa: SIM115

    def __enter__(self) -> ColumnWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()

    def append(self, values: npt.NDArray[Any]) -> None:
        """Append values of rows; all of one type and shape."""
        found = (values.dtype, values.shape[1:])
        self._kind = self._kind or found
        if found != self._kind:
            raise SelectionError(
                f"Values of a column must all be of one type: {_name(self._kind)} came before "
                f"{_name(found)}."
            )
        data = np.ascontiguousarray(values).reshape(-1).view(np.uint8).data
        self._digest.update(data)
        self._rows += len(values)
        self._bytes += len(data)
        with storing(self._what, self._path):
            while data:
                data = data[self._file.write(data) :]

    def finish(self) -> Segment:
        """Close the file and say what it holds."""
        self._file.close()
        dtype, shape = self._kind or (np.dtype(np.uint8), ())
        return Segment(self._path, self._rows, dtype, shape, self._bytes, self._digest.hexdigest())


class RowColumn:
    """One value (or one row of values) for each of n rows, by rank.

    Parameters
    ----------
    segments : iterable of Segment
        One after another; those without rows are left out.
    resident : int
        Bytes up to which `at` reads the whole column once and keeps it.

    Attributes
    ----------
    dtype : numpy.dtype
    shape : tuple of int
        Of one row's value.
    """

    def __init__(self, segments: Iterable[Segment], *, resident: int = 0) -> None:
        self._segments = tuple(s for s in segments if s.rows)
        first = self._segments[0] if self._segments else None
        self.dtype = np.dtype(np.uint8) if first is None else first.dtype
        self.shape = () if first is None else first.shape
        for s in self._segments:
            if (s.dtype, s.shape) != (self.dtype, self.shape):
                raise SelectionError(
                    f"Values of a column must all be of one type: "
                    f"{_name((self.dtype, self.shape))} came before {_name((s.dtype, s.shape))}."
                )
        self._starts = np.cumsum([0, *(s.rows for s in self._segments)], dtype=np.int64)
        self._resident = resident

    @classmethod
    def write(
        cls, path: Path, parts: Iterable[npt.NDArray[Any]], *, resident: int = 0
    ) -> RowColumn:
        """Write parts, in order of rank, as a column of one file."""
        with ColumnWriter(path) as writer:
            for part in parts:
                writer.append(part)
            return cls([writer.finish()], resident=resident)

    def __len__(self) -> int:
        return int(self._starts[-1])

    @property
    def segments(self) -> tuple[Segment, ...]:
        """The files, in order."""
        return self._segments

    @property
    def nbytes(self) -> int:
        return len(self) * self._row_bytes

    @property
    def _row_bytes(self) -> int:
        return self.dtype.itemsize * math.prod(self.shape)

    def __getitem__(self, ranks: slice) -> npt.NDArray[Any]:
        """Return the values of ranks a…b−1, read from the files; shape (b − a, …)."""
        start, stop, _ = ranks.indices(len(self))
        out = np.empty((max(0, stop - start), *self.shape), dtype=self.dtype)
        at = int(np.searchsorted(self._starts, start, side="right")) - 1
        filled = 0
        while filled < len(out):
            segment, first = self._segments[at], start + filled - int(self._starts[at])
            count = min(len(out) - filled, segment.rows - first)
            self._read(segment, first, out[filled : filled + count])
            filled += count
            at += 1
        return out

    def _read(self, segment: Segment, first: int, out: npt.NDArray[Any]) -> None:
        data = out.reshape(-1).view(np.uint8).data
        with storing("Reading intermediate results", segment.path), open(segment.path, "rb") as f:
            f.seek(first * self._row_bytes)
            if f.readinto(data) != len(data):
                raise OSError(f"the file ends before row {first + len(out)}")

    def chunks(self, rows: int = CHUNK_ROWS) -> Iterator[npt.NDArray[Any]]:
        """Yield the values in order, `rows` at a time."""
        for start in range(0, len(self), rows):
            yield self[start : start + rows]

    def load(self) -> npt.NDArray[Any]:
        """Return all values, in memory."""
        return self[:]

    def remove(self) -> None:
        """Remove the files."""
        for segment in self._segments:
            segment.path.unlink(missing_ok=True)

    # --- values at any ranks ----------------------------------------------------------------------

    def at(self, ranks: npt.NDArray[np.integer]) -> npt.NDArray[Any]:
        """Return the values at ranks, in any order; shape (k, …)."""
        if self.nbytes <= self._resident:
            return self._loaded[ranks]  # type: ignore[no-any-return]
        order = np.argsort(ranks, kind="stable")
        ascending = ranks[order].astype(np.int64)
        out = np.empty((len(ranks), *self.shape), dtype=self.dtype)
        cuts = np.searchsorted(ascending, self._starts)
        for segment, start, a, b in zip(
            self._segments, self._starts, cuts[:-1], cuts[1:], strict=False
        ):
            if a < b:
                self._gather(segment, ascending[a:b] - start, order[a:b], out)
        return out

    @cached_property
    def _loaded(self) -> npt.NDArray[Any]:
        return self.load()

    def _gather(
        self,
        segment: Segment,
        ranks: npt.NDArray[np.int64],
        places: npt.NDArray[np.int64],
        out: npt.NDArray[Any],
    ) -> None:
        """Fill places of `out` with the values at ascending ranks of a segment."""
        window = max(1, _WINDOW // self._row_bytes)
        cuts = np.append(np.searchsorted(ranks, np.arange(0, segment.rows, window)), len(ranks))
        with storing("Reading intermediate results", segment.path):
            handle = os.open(segment.path, os.O_RDONLY)
            try:
                mapped = mmap.mmap(handle, 0, access=mmap.ACCESS_READ)
            finally:
                os.close(handle)
        with mapped:
            values = np.frombuffer(mapped, dtype=self.dtype).reshape(segment.rows, *self.shape)
            for a, b in itertools.pairwise(cuts):
                if a < b:
                    out[places[a:b]] = values[ranks[a:b]]
                    mapped.madvise(mmap.MADV_DONTNEED)
            del values


def sum_counts(parts: Iterable[npt.NDArray[np.int64]]) -> npt.NDArray[np.int64]:
    """Add counts of labels 0, 1, …, of which later parts may know more."""
    total = np.zeros(0, dtype=np.int64)
    for part in parts:
        longer, shorter = (part, total) if len(part) > len(total) else (total, part)
        longer[: len(shorter)] += shorter
        total = longer
    return total


def _name(kind: _Kind) -> str:
    return f"{kind[0]}{list(kind[1]) if kind[1] else ''}"
