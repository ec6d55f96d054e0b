"""Edges in files between the two passes of `edge_sort`: runs, and the records in them.

A record is of 32-bit words: the target, from the first node of its range; the edge, from the first
of its run; the source, in one word or two; and the words of each value that an edge has.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ...dataplane.errors import ParameterError
from ...dataplane.storage import storing

if TYPE_CHECKING:
    from .edge_sort import Ranges

__all__ = ["EdgeDealer", "Run", "RunLayout", "records_of", "runs_of"]

I64 = npt.NDArray[np.int64]
U32 = npt.NDArray[np.uint32]

_READ_BYTES = 8 << 20  # of records that are read at a time
_READING = "Reading sorted edges"
_WRITING = "Sorting edges on disk"


@dataclass(frozen=True)
class RunLayout:
    """What the records of a run hold.

    Attributes
    ----------
    wide : bool
        Sources take two words.
    values : tuple of dtype
        Of the values that an edge has, of 32 or 64 bits.
    """

    wide: bool
    values: tuple[np.dtype[Any], ...] = ()

    @property
    def value_words(self) -> int:
        return sum(dtype.itemsize for dtype in self.values) // 4

    @property
    def words(self) -> int:
        return 3 + self.wide + self.value_words

    @property
    def record_bytes(self) -> int:
        return 4 * self.words

    @property
    def row_dtype(self) -> np.dtype[Any]:
        return np.dtype(np.int64 if self.wide else np.int32)

    @property
    def sorted_bytes(self) -> int:
        """Bytes an edge of what comes out."""
        return self.row_dtype.itemsize + 8 + 4 * self.value_words

    def join(self, values: Sequence[npt.NDArray[Any]], rows: int) -> U32:
        """Return values as the words of records, shape (rows, words)."""
        if not values:
            return np.empty((rows, 0), np.uint32)
        parts = [np.ascontiguousarray(v).view(np.uint32).reshape(rows, -1) for v in values]
        return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)

    def split(self, words: U32) -> list[npt.NDArray[Any]]:
        """Return the values of which these are the words."""
        found, at = [], 0
        for dtype in self.values:
            stop = at + dtype.itemsize // 4
            found.append(np.ascontiguousarray(words[:, at:stop]).view(dtype).reshape(-1))
            at = stop
        return found


class EdgeDealer:
    """Deals edges to ranges, into one file; use it as a context manager.

    Parameters
    ----------
    path : Path
    ranges : Ranges
    layout : RunLayout
    run_edges : int
        Edges of a run.
    """

    def __init__(self, path: Path, ranges: Ranges, layout: RunLayout, run_edges: int) -> None:
        if not 0 < run_edges < 1 << 32:
            raise ParameterError(f"A run has 1 to 2**32 - 1 edges. Got {run_edges}.")
        self._path, self._ranges, self._layout = path, ranges, layout
        self._source = np.empty(run_edges, np.int64)
        self._target = np.empty(run_edges, np.int64)
        self._values = np.empty((run_edges, layout.value_words), np.uint32)
        self._records = np.empty((run_edges, layout.words), np.uint32)
        self._held = self._first = self._written = 0
        self._index: list[I64] = []
        with storing(_WRITING, path):
            self._file = open(path, "wb", buffering=0)  # noqa: SIM115

    def __enter__(self) -> EdgeDealer:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def add(
        self, source: I64, target: I64, values: Sequence[npt.NDArray[Any]], first_edge: int
    ) -> None:
        """Add edges, whose numbers are consecutive from `first_edge`."""
        words = self._layout.join(values, source.size)
        done = 0
        while done < source.size:
            if self._held == 0:
                self._first = first_edge + done
            elif self._first + self._held != first_edge + done:
                self._deal()
                continue
            count = min(source.size - done, self._source.size - self._held)
            here, there = slice(self._held, self._held + count), slice(done, done + count)
            self._source[here], self._target[here] = source[there], target[there]
            self._values[here] = words[there]
            self._held += count
            done += count
            if self._held == self._source.size:
                self._deal()

    def _deal(self) -> None:
        from .edge_kernels import deal

        if not self._held:
            return
        here, ranges = slice(self._held), self._ranges
        starts = np.zeros(len(ranges) + 1, np.int64)
        deal(
            self._source[here], self._target[here], self._values[here], ranges.shift,
            ranges.range_of, ranges.first, self._layout.wide, self._records, starts,
        )  # fmt: skip
        data = self._records[here].reshape(-1).view(np.uint8).data
        with storing(_WRITING, self._path):
            while data:
                data = data[self._file.write(data) :]
        self._index.append(np.concatenate([[self._first], self._written + starts]))
        self._written += self._held
        self._held = 0

    def finish(self, index: Path) -> None:
        """Write the last run, and where each range's records are."""
        self._deal()
        with storing(_WRITING, index), open(index, "wb") as file:
            np.save(file, np.array(self._index, np.int64).reshape(-1, len(self._ranges) + 2))


@dataclass(frozen=True)
class Run:
    """The records of one range in one run.

    Attributes
    ----------
    path : str
    start, stop : int
        Records of the file.
    first_edge : int
        Of the run.
    """

    path: str
    start: int
    stop: int
    first_edge: int


def runs_of(files: Iterable[tuple[str, str]], number: int) -> list[Run]:
    """Return the runs of a range, in the order of (records, index) files; empty ones left out."""
    found: list[Run] = []
    for path, index in files:
        with storing(_READING, index):
            table = np.load(index, mmap_mode="r")
        rows = table[:, [0, number + 1, number + 2]].tolist()
        found += [Run(path, start, stop, first) for first, start, stop in rows if start < stop]
    return found


def records_of(runs: Sequence[Run], layout: RunLayout) -> Iterator[tuple[U32, int]]:
    """Yield (records, first edge of their run), some at a time; each is valid until the next."""
    size = max(1, _READ_BYTES // layout.record_bytes)
    buffer = np.empty((size, layout.words), np.uint32)
    for run in runs:
        with storing(_READING, run.path), open(run.path, "rb", buffering=0) as file:
            file.seek(run.start * layout.record_bytes)
            for start in range(run.start, run.stop, size):
                part = buffer[: min(size, run.stop - start)]
                data, filled = part.reshape(-1).view(np.uint8).data, 0
                while filled < len(data):
                    count = file.readinto(data[filled:])
                    if not count:
                        raise OSError(f"the file ends before record {run.stop:,}")
                    filled += count
                yield part, run.first_edge
