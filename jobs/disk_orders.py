"""Orders of labelled rows that are made on disk, in a stated memory, whatever the number of rows.

Each is the order that the pure function of the same name makes in memory, with its arithmetic; only
the sorting is done by `ExternalSort`. Rows are sorted by (group, key) first, so that each stands at
its number in its group's random order; where that is not the order yet, they are sorted again by
what follows from the number.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..clustering.batches import cut_clusters, pack_clusters, piece_keys, shuffle_clusters
from ..dataplane.external_sort import RECORD_BYTES, ExternalSort
from ..dataplane.orders import stratified, stratum_offsets, stratum_places
from ..dataplane.random import Stream, keys
from ..dataplane.row_column import RowColumn, sum_counts
from ..dataplane.rowset import RowSet
from .context import JobContext

__all__ = ["ORDER_BYTES", "LabelledRows", "Piece", "stratify"]

U64 = npt.NDArray[np.uint64]
I64 = npt.NDArray[np.int64]

ORDER_BYTES = 2 * RECORD_BYTES + 8
"""Bytes a row in the work folder, while an order is made: two sorts, and the order itself."""

_KEYS = 2.0**-64
_ROWS = 1 << 18  # that are added at a time
_INSIDE = np.uint64(33)  # bits of a row's number in its micro-batch
_COUNT_BYTES = 64  # a group, for its counts and starts


def stratify(job: JobContext, rows: RowSet, labels: RowColumn, epoch: int) -> I64 | RowColumn:
    """Return the ranks in the order of `orders.stratified`, made in memory where it fits."""
    if job.budget.holds(len(rows)):
        return stratified(labels.load(), rows.ids(), seed=job.seed, epoch=epoch)
    return LabelledRows(job, rows, labels, epoch).stratified()


@dataclass(frozen=True)
class Piece:
    """Whole micro-batches of an order: ranks, where each is cut, and its cluster."""

    ranks: U64
    offsets: I64
    clusters: I64


class LabelledRows:
    """Rows with labels 0…k−1, ready to be ordered.

    Parameters
    ----------
    job : JobContext
    rows : RowSet
    labels : RowColumn
    epoch : int
    """

    def __init__(self, job: JobContext, rows: RowSet, labels: RowColumn, epoch: int) -> None:
        self._job, self._rows, self._labels = job, rows, labels
        self._draw = {"seed": job.seed, "epoch": epoch}
        largest = max(int(part.max()) for part in labels.chunks())
        job.budget.require((largest + 1) * _COUNT_BYTES, "Counting the rows of each group")
        counts = sum_counts(np.bincount(part) for part in labels.chunks())
        self._present = np.flatnonzero(counts)
        self._counts = counts[self._present]

    def stratified(self) -> RowColumn:
        """Return the ranks in the order of `orders.stratified`."""
        offsets = stratum_offsets(len(self._counts), **self._draw)
        sorting = self._sort()
        for group, inside, row_keys, ranks in self._grouped(np.arange(len(self._present))):
            place = stratum_places(group, inside, self._counts, offsets)
            sorting.add(place.view(np.uint64), row_keys, ranks, place)
        return self._job.column(ranks for _, _, ranks in sorting.sorted())

    def within(self, batch_size: int, *, drop_last: bool) -> Iterator[Piece]:
        """Yield the micro-batches of `batches.within`."""
        pieces = cut_clusters(self._counts, batch_size, drop_last=drop_last)
        sorting, key = self._sort(), np.uint64(0)
        for group, inside, _, ranks in self._grouped(np.arange(len(self._present))):
            used = inside < pieces.used[group]
            group, inside, ranks = group[used], inside[used], ranks[used]
            if not len(ranks):
                continue
            within = inside - pieces.start(group, pieces.of(group, inside))
            key_of_row = self._keys_of_pieces(ranks, within == 0, key)
            key = key_of_row[-1]
            second = (self._present[group].astype(np.uint64) << _INSIDE) | within.astype(np.uint64)
            sorting.add(key_of_row, second, ranks, key_of_row * _KEYS)
        yield from _whole_pieces(sorting.sorted())

    def aligned(self, batch_size: int, *, drop_last: bool) -> tuple[RowColumn, I64]:
        """Return the ranks in the order of `batches.aligned`, and where micro-batches are cut."""
        shuffled = shuffle_clusters(self._present, **self._draw)
        cuts = pack_clusters(
            self._present[shuffled], self._counts[shuffled], batch_size, drop_last=drop_last
        )
        return self._job.column(part[-1] for part in self._grouped(shuffled)), cuts

    # --- the two sorts ----------------------------------------------------------------------------

    def _sort(self) -> ExternalSort:
        budget = self._job.budget
        return ExternalSort(self._job.work.folder, rows=len(self._rows), memory=budget.sorting)

    def _grouped(self, order: I64) -> Iterator[tuple[I64, I64, U64, U64]]:
        """Yield (group, number in its random order, key, rank) of the rows, group by group.

        Parameters
        ----------
        order : int64, shape (k,)
            Groups, as places among those present, in the order wanted. `group` is the place in it.
        """
        counts = self._counts[order]
        starts = np.cumsum(counts) - counts
        place = np.zeros(int(self._present.max()) + 1, dtype=np.int64)
        place[self._present[order]] = np.arange(len(order))
        sorting, share = self._sort(), 1 / len(self._rows)
        for ranks, row_keys in self._keyed():
            group = place[self._labels[int(ranks[0]) : int(ranks[-1]) + 1]]
            where = (starts[group] + row_keys * _KEYS * counts[group]) * share
            sorting.add(group.astype(np.uint64), row_keys, ranks, where)
        done = 0
        for first, row_keys, ranks in sorting.sorted():
            group = first.astype(np.int64)
            inside = np.arange(done, done + len(ranks)) - starts[group]
            done += len(ranks)
            yield group, inside, row_keys, ranks

    def _keyed(self) -> Iterator[tuple[U64, U64]]:
        """Yield (rank, key) of the rows, by rank."""
        done = 0
        for chunk in self._rows.chunks():
            for start in range(0, len(chunk), _ROWS):
                ids = chunk[start : start + _ROWS]
                ranks = np.arange(done, done + len(ids), dtype=np.uint64)
                yield ranks, keys(self._draw["seed"], Stream.ORDER, self._draw["epoch"], ids)
                done += len(ids)

    def _keys_of_pieces(self, ranks: U64, begins: npt.NDArray[np.bool_], before: Any) -> U64:
        """Return the key of each row's micro-batch; rows before the first begin go on from one."""
        first_ids = self._rows.at(ranks[begins])
        found = np.append(before, piece_keys(first_ids, **self._draw))
        return found[np.cumsum(begins)]


def _whole_pieces(parts: Iterable[tuple[U64, U64, U64]]) -> Iterator[Piece]:
    """Yield sorted rows of pieces so that none is torn between two yields."""
    held_second, held_ranks = np.zeros(0, np.uint64), np.zeros(0, np.uint64)
    for _, second, ranks in parts:
        held_second = np.append(held_second, second)
        held_ranks = np.append(held_ranks, ranks)
        begins = np.flatnonzero((held_second << (64 - _INSIDE)) == 0)
        if len(begins) > 1:  # what follows the last begin may go on
            yield _piece(held_second, held_ranks, begins)
            held_second, held_ranks = held_second[begins[-1] :], held_ranks[begins[-1] :]
    if len(held_ranks):
        yield _piece(held_second, held_ranks, np.array([0, len(held_ranks)]))


def _piece(second: U64, ranks: U64, offsets: I64) -> Piece:
    clusters = (second[offsets[:-1]] >> _INSIDE).astype(np.int64)
    return Piece(ranks[: offsets[-1]], offsets.astype(np.int64), clusters)
