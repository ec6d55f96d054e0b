"""An ascending set of row ids that answers rank → row id.

All rows of a snapshot take no memory; a selection takes one bit a row id.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np
import numpy.typing as npt

from .bitmap import Bitmap
from .errors import SelectionError
from .random import choice_bound, keys
from .snapshot import Snapshot

__all__ = ["RowSet", "as_run"]

U64 = npt.NDArray[np.uint64]

_CHUNK = 1 << 20


def as_run(ids: U64 | range) -> U64 | range:
    """Return distinct, ascending row ids as a range where there is no gap."""
    if len(ids) and int(ids[-1] - ids[0]) == len(ids) - 1:
        return range(int(ids[0]), int(ids[-1]) + 1)
    return ids


@dataclass(frozen=True)
class RowSet:
    """Rows of a snapshot.

    Attributes
    ----------
    snapshot : Snapshot
    chosen : Bitmap over the row ids, or None
        None: all rows.
    """

    snapshot: Snapshot
    chosen: Bitmap | None = None

    def __len__(self) -> int:
        return self.snapshot.rows if self.chosen is None else len(self.chosen)

    def at(self, ranks: npt.NDArray[np.integer]) -> U64:
        """Return the row ids at ranks 0…len−1."""
        return self.snapshot.ids_at(ranks) if self.chosen is None else self.chosen.select(ranks)

    def contains(self, ids: U64) -> npt.NDArray[np.bool_]:
        """Return for each row id whether it is one of these rows; shape (k,)."""
        if self.chosen is not None:
            return self.chosen.contains(ids)
        if ids.size and self._in_one_fragment(int(ids.min()), int(ids.max())):
            return np.ones(len(ids), bool)
        slot = np.searchsorted(self.snapshot.starts, ids, side="right") - 1
        return (slot >= 0) & (ids < self.snapshot.stops[slot])

    def _in_one_fragment(self, low: int, high: int) -> bool:
        """Whether a fragment holds both ids, and so all between them."""
        at = np.searchsorted(self.snapshot.starts, np.array([low, high], np.uint64), side="right")
        return bool(at[0] == at[1] > 0 and high < self.snapshot.stops[at[0] - 1])

    def ranks(self, ids: U64) -> npt.NDArray[np.int64]:
        """Return the ranks of row ids that are among these rows; the inverse of `at`."""
        if self.chosen is not None:
            return self.chosen.ranks(ids)
        return self.snapshot.positions(ids)

    def fragment_rows(self) -> npt.NDArray[np.int64]:
        """Return how many of these rows each fragment of the snapshot holds; shape (f,)."""
        fragments = self.snapshot.fragments
        if self.chosen is None:
            return np.array([f.rows for f in fragments], dtype=np.int64)
        counts = [self.chosen.count(f.first_row_id, f.stop_row_id) for f in fragments]
        return np.array(counts, dtype=np.int64)

    def ids(self) -> U64:
        """Return all row ids, ascending."""
        return np.concatenate([np.zeros(0, np.uint64), *self.chunks()])

    def chunks(self) -> Iterator[U64]:
        """Yield the row ids, ascending, about a million at a time."""
        if self.chosen is not None:
            yield from self.chosen.chunks()
            return
        for start in range(0, len(self), _CHUNK):
            stop = min(start + _CHUNK, len(self))
            yield self.snapshot.ids_at(np.arange(start, stop, dtype=np.uint64))

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the bits, in hex; empty where all rows are meant."""
        return "" if self.chosen is None else hashlib.sha256(self.chosen.words.data).hexdigest()

    # --- fewer rows -------------------------------------------------------------------------------

    def filter(self, test: Callable[[U64, slice], npt.NDArray[np.bool_]]) -> RowSet:
        """Return the rows for which a test of (row ids, their ranks) is true, chunk by chunk."""
        return self._where((ids, test(ids, ranks)) for ids, ranks in self._chunks_and_ranks())

    def filter_runs(self, test: Callable[[U64 | range], npt.NDArray[np.bool_]]) -> RowSet:
        """Return the rows for which a test of row ids is true; ids without a gap come as a range.

        A range takes no memory, and keys are made of it in half the time.
        """
        return self._where((ids, test(ids)) for ids in self._chunks_or_runs())

    def _chunks_and_ranks(self) -> Iterator[tuple[U64, slice]]:
        rows = 0
        for ids in self.chunks():
            yield ids, slice(rows, rows + len(ids))
            rows += len(ids)

    def _chunks_or_runs(self) -> Iterator[U64 | range]:
        if self.chosen is not None:
            for ids in self.chosen.chunks():
                yield as_run(ids)
            return
        for run in self.snapshot.runs():
            for start in range(run.start, run.stop, _CHUNK):
                yield range(start, min(start + _CHUNK, run.stop))

    def _where(self, tested: Iterable[tuple[U64 | range, npt.NDArray[np.bool_]]]) -> RowSet:
        """Return the rows at which masks over ascending row ids are set."""
        bits = Bitmap.of(self.snapshot.next_row_id, ())
        for ids, mask in tested:
            run = as_run(ids)
            if isinstance(run, range):
                bits.add_run(run.start, mask)
            else:
                bits.add(run[mask])
        return self if len(bits) == len(self) else RowSet(self.snapshot, bits)

    def keep(self, mask: npt.NDArray[np.bool_]) -> RowSet:
        """Return the rows at which a mask over the ranks is set."""
        if len(mask) != len(self):
            raise SelectionError(f"A mask of {len(mask)} values cannot select of {len(self)} rows.")
        return self.filter(lambda _, ranks: mask[ranks])

    def pick(self, ranks: npt.NDArray[np.integer]) -> RowSet:
        """Return the rows at ranks."""
        starts = range(0, len(ranks), _CHUNK)
        parts = (self.at(ranks[start : start + _CHUNK]) for start in starts)
        bits = Bitmap.of(self.snapshot.next_row_id, parts)
        return self if len(ranks) == len(self) else RowSet(self.snapshot, bits)

    def since(self, first_row_id: int) -> RowSet:
        """Return the rows whose ids are not below a given one."""
        return self.filter(lambda ids, _: ids >= np.uint64(first_row_id))

    def choose(self, n: int, *, seed: int, stream: int, epoch: int = 0) -> RowSet:
        """Choose exactly n rows, 1 ≤ n ≤ len: those that `random.choose` takes."""
        draw = partial(keys, seed, stream, epoch)
        bound = choice_bound(n, lambda: map(draw, self.chunks()))
        return self.filter(lambda ids, _: draw(ids) <= bound)
