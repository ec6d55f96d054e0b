"""Sorting more edges than memory holds by their target, stably, in two passes over files.

1. Edges are counted by *cells*, stretches of 2ˢ nodes, at most 65,536 of them (`CellCounts`; counts
   of parts of the edges add up). So it is known how many nodes and edges there are, and at which
   positions the edges into each cell will stand.
2. Cells are cut into *ranges* of about equal numbers of edges (`Ranges`).
3. Edges are dealt to ranges, some millions at a time (`edge_runs.EdgeDealer`). Such a *run* is one
   stretch of a file, in which the records of a range stand together, in the order of the edges.
4. A range is sorted by counting (`sort_range`): its records are read run after run, once to count
   the edges into each node, and once more to put each edge at its position. Where a range has more
   edges than memory, as a hub has, it is put together in *windows* of positions, and read once for
   each.

What comes out does not depend on cells, ranges, runs or windows.

This is distribution sort, as in Knuth, *The Art of Computer Programming*, vol. 3, section 5.4.9,
with the keys' exact distribution known beforehand.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ...dataplane.errors import ParameterError
from ...dataplane.storage import storing
from .edge_runs import Run, RunLayout, records_of

__all__ = [
    "CELLS",
    "CellCounts",
    "Ranges",
    "SortedWindow",
    "sort_range",
]

I64 = npt.NDArray[np.int64]
U32 = npt.NDArray[np.uint32]

CELLS = 1 << 16
"""Cells at most."""

_READING = "Reading sorted edges"
_WRITING = "Sorting edges on disk"


@dataclass(frozen=True)
class CellCounts:
    """How many edges lead into each cell.

    Attributes
    ----------
    shift : int
        A cell has 2**shift nodes.
    counts : int64, shape (CELLS,)
    source, target : int
        The largest numbers there are; −1 of no edges.
    """

    shift: int
    counts: I64
    source: int = -1
    target: int = -1

    @classmethod
    def none(cls) -> CellCounts:
        return cls(0, np.zeros(CELLS, np.int64))

    @property
    def edges(self) -> int:
        return int(self.counts.sum())

    def coarser(self, shift: int) -> CellCounts:
        """Return the counts of cells that are at least as large."""
        by = shift - self.shift
        if by <= 0:
            return self
        counts = np.zeros(CELLS, np.int64)
        folded = self.counts.reshape(-1, 1 << by).sum(axis=1) if by <= 16 else self.counts.sum()
        counts[: np.size(folded)] = folded
        return CellCounts(shift, counts, self.source, self.target)

    def holding(self, nodes: int) -> CellCounts:
        """Return the counts of cells that are large enough for so many nodes."""
        return self.coarser(max(0, max(0, nodes - 1).bit_length() - 16))

    def add(self, source: I64, target: I64) -> CellCounts:
        """Return the counts with some edges more; none of their nodes is negative."""
        if target.size == 0:
            return self
        from .edge_kernels import count_cells

        most = max(self.target, int(target.max()))
        made = self.holding(most + 1)
        counts = made.counts if made is not self else self.counts.copy()
        count_cells(target, made.shift, counts)
        return CellCounts(made.shift, counts, max(self.source, int(source.max())), most)

    def __add__(self, other: CellCounts) -> CellCounts:
        shift = max(self.shift, other.shift)
        mine, theirs = self.coarser(shift), other.coarser(shift)
        return CellCounts(
            shift,
            mine.counts + theirs.counts,
            max(self.source, other.source),
            max(self.target, other.target),
        )


@dataclass(frozen=True)
class Ranges:
    """Stretches of nodes whose edges are sorted together.

    Attributes
    ----------
    shift : int
    range_of : int32, shape (CELLS,)
        The range of each cell.
    first : int64, shape (ranges + 1,)
        First node of each; the last entry is the number of nodes.
    position : int64, shape (ranges + 1,)
        Where the edges into each begin.
    """

    shift: int
    range_of: npt.NDArray[np.int32]
    first: I64
    position: I64

    def __len__(self) -> int:
        return self.first.size - 1

    @classmethod
    def cut(cls, cells: CellCounts, nodes: int, *, edges_each: int, nodes_each: int) -> Ranges:
        """Cut so many nodes into ranges.

        Parameters
        ----------
        cells : CellCounts
        nodes : int
        edges_each : int
            Edges of a range at most; a cell that has more is a range by itself.
        nodes_each : int
            Nodes of a range at most; likewise.
        """
        cells = cells.holding(nodes)
        used = max(1, ((nodes - 1) >> cells.shift) + 1) if nodes else 1
        width = 1 << cells.shift
        range_of = np.zeros(CELLS, np.int32)
        first, held, number = [0], 0, 0
        for cell, count in enumerate(cells.counts[:used].tolist()):
            here = (cell << cells.shift) - first[-1]
            if here and (held + count > edges_each or here + width > nodes_each):
                first.append(cell << cells.shift)
                held, number = 0, number + 1
            held += count
            range_of[cell] = number
        range_of[used:] = number
        ends = np.zeros(number + 2, np.int64)
        np.add.at(ends, range_of[:used] + 1, cells.counts[:used])
        starts = np.array([*first, nodes], np.int64)
        return cls(cells.shift, range_of, starts, np.cumsum(ends))

    def save(self, path: Path) -> None:
        """Write the ranges, for others to deal by."""
        with storing(_WRITING, path), open(path, "wb") as file:
            np.savez(
                file,
                shift=np.int64(self.shift),
                range_of=self.range_of,
                first=self.first,
                position=self.position,
            )

    @classmethod
    def load(cls, path: str | Path) -> Ranges:
        with storing(_READING, path), np.load(path) as held:
            return cls(int(held["shift"]), held["range_of"], held["first"], held["position"])


# --- sorting --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SortedWindow:
    """Edges at consecutive positions.

    Attributes
    ----------
    begin : int
        Position of the first.
    row : int32 or int64, shape (k,)
    permutation : int64, shape (k,)
    values : list of arrays of shape (k,)
    """

    begin: int
    row: npt.NDArray[Any]
    permutation: I64
    values: list[npt.NDArray[Any]]


def sort_range(
    runs: Sequence[Run],
    layout: RunLayout,
    nodes: int,
    position: int,
    *,
    limit: int,
    by_value: int | None = None,
) -> tuple[I64, Iterator[SortedWindow]]:
    """Sort the edges into a range of nodes.

    Parameters
    ----------
    runs : sequence of Run
    layout : RunLayout
    nodes : int
        Of the range.
    position : int
        Where its edges begin.
    limit : int
        Edges that are held in memory.
    by_value : int, optional
        Edges into a node ascend by this value, those of the same value in their order. None: all
        in their order.

    Returns
    -------
    ends : int64, shape (nodes,)
        Where the edges into each node end.
    windows : iterator of SortedWindow

    Raises
    ------
    ParameterError
        Where the edges into one node are more than `limit`, and are to be sorted by a value.
    """
    from .edge_kernels import count_targets

    degree = np.zeros(nodes, np.int64)
    for records, _ in records_of(runs, layout):
        count_targets(records, degree)
    ends = position + np.cumsum(degree)
    starts = ends - degree
    windows = _windows(starts, ends, limit, whole=by_value is not None)
    return ends, _sorted(runs, layout, starts, ends, windows, by_value)


def _sorted(
    runs: Sequence[Run],
    layout: RunLayout,
    starts: I64,
    ends: I64,
    windows: Sequence[tuple[int, int]],
    by_value: int | None,
) -> Iterator[SortedWindow]:
    from .edge_kernels import place

    for begin, stop in windows:
        row = np.empty(stop - begin, layout.row_dtype)
        permutation = np.empty(stop - begin, np.int64)
        words = np.empty((stop - begin, layout.value_words), np.uint32)
        at = starts.copy()
        for records, first_edge in records_of(runs, layout):
            place(records, first_edge, at, begin, layout.wide, row, permutation, words)
        values = layout.split(words)
        if by_value is not None:
            order = _order_within(starts, ends, begin, stop, values[by_value])
            row, permutation = row[order], permutation[order]
            values = [v[order] for v in values]
        yield SortedWindow(begin, row, permutation, values)


def _order_within(starts: I64, ends: I64, begin: int, stop: int, values: npt.NDArray[Any]) -> I64:
    """Return the order of a window by a value within nodes."""
    from .csc_kernels import sort_segments

    inside = np.flatnonzero((starts >= begin) & (ends <= stop) & (starts < ends))
    colptr = np.append(starts[inside], stop) - begin
    order = np.empty(stop - begin, np.int64)
    sort_segments(colptr, values, order)
    return order


def _windows(starts: I64, ends: I64, limit: int, *, whole: bool) -> list[tuple[int, int]]:
    """Cut positions into windows of at most `limit`; with `whole` between nodes only."""
    if not starts.size or starts[0] == ends[-1]:
        return []
    begin, last = int(starts[0]), int(ends[-1])
    found = []
    while begin < last:
        stop = min(begin + limit, last)
        if whole and stop < last:
            node = int(np.searchsorted(ends, stop, "right"))  # the first that ends later
            if int(starts[node]) <= begin:
                raise ParameterError(
                    f"The edges into one node are {int(ends[node]) - int(starts[node]):,}, and to "
                    f"be sorted by time; of the memory given there is room for {limit:,}. Give "
                    "more with --memory, or use fewer workers."
                )
            stop = int(starts[node])
        found.append((begin, stop))
        begin = stop
    return found
