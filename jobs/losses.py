"""The losses that a job selects by, and where they are from.

They come from a signal store, a single file (`dataplane.signal_file`), or a column of the dataset;
`signal_reading` reads them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..coresets.loss_rows import F32, LossRows
from ..coresets.loss_search import NonFinite
from ..dataplane.canonical import digest, file_sha256
from ..dataplane.errors import SelectionError, examples
from ..dataplane.random import array_of
from ..dataplane.row_column import RowColumn
from ..dataplane.rowset import RowSet, as_run
from ..dataplane.signal_file import is_signal_file, open_signal_file
from ..dataplane.signals import SignalStore
from ..dataplane.snapshot import Snapshot
from ..dataplane.storage import Location, locate
from .spec import JobSpec

__all__ = [
    "Losses",
    "Signal",
    "finite_rows",
    "open_signal",
    "signals_digest",
]

U64 = npt.NDArray[np.uint64]


@dataclass(frozen=True)
class Signal:
    """Where a job's signals are.

    Attributes
    ----------
    location : Location
    store : SignalStore or None
        None of a single file.
    """

    location: Location
    store: SignalStore | None

    @property
    def bases(self) -> list[tuple[str, Snapshot]]:
        """The snapshot that its row ids belong to, and what holds it; none of a file."""
        if self.store is None:
            return []
        return [(f"the signals in {self.location}", self.store.snapshot)]

    def fingerprint(self) -> str:
        """Return a digest of what it holds, without reading all of a store."""
        if self.store is None:
            with self.location.open() as file:
                return file_sha256(file)
        names = {s: [str(p.name) for p in self.store.parts(s)] for s in self.store.signals}
        return digest(names)


def open_signal(spec: JobSpec) -> Signal | None:
    """Open the signals that a job names; None where it names none.

    Before the first epoch there may be no store yet.
    """
    if spec.signal is None:
        return None
    location = locate(spec.signal, spec.storage_options)
    if is_signal_file(spec.signal):
        open_signal_file(location)
        return Signal(location, None)
    if spec.epochs[0] == 0 and not location.exists():
        return None
    return Signal(location, SignalStore.open(spec.signal, storage_options=spec.storage_options))


@dataclass(frozen=True)
class Losses:
    """The losses of a dataset's rows.

    Attributes
    ----------
    snapshot : Snapshot
    column : RowColumn of float32, or None
        By rank among all rows; None: no row has one.
    scored, nonfinite : int
        Rows with a finite loss; with another one.
    digest : str or None
        Of the signal; None of a column of the dataset, which the snapshot stands for.
    """

    snapshot: Snapshot
    column: RowColumn | None = None
    scored: int = 0
    nonfinite: int = 0
    digest: str | None = None

    def of(self, ids: U64 | range) -> LossRows:
        """Return the losses of some rows, ascending; those between them are read, too."""
        return self._rows(as_run(ids), self._ascending(ids))

    def at(self, ids: U64) -> LossRows:
        """Return the losses of some rows, in any order."""
        return self._rows(ids, self._anywhere(ids))

    def bad(self, ids: U64) -> U64:
        """Return those of some rows, in any order, whose loss is NaN or infinite."""
        return ids[np.isinf(self._anywhere(ids))] if self.nonfinite else ids[:0]

    def _ascending(self, ids: U64 | range) -> F32:
        if self.column is None or not len(ids):
            return np.full(len(ids), np.nan, np.float32)
        ends = np.array([ids[0], ids[-1]], np.uint64)
        first, last = self.snapshot.positions(ends).tolist()
        found: F32 = self.column[first : last + 1]
        if len(found) > len(ids):
            found = found[self.snapshot.positions(array_of(ids)) - first]
        return found

    def _anywhere(self, ids: U64) -> F32:
        if self.column is None:
            return self._ascending(ids)
        found: F32 = self.column.at(self.snapshot.positions(ids))
        return found

    def _rows(self, ids: U64 | range, found: F32) -> LossRows:
        return finite_rows(ids, found) if self.nonfinite else LossRows(ids, found)

    def check(self, rows: RowSet, policy: NonFinite) -> None:
        """Raise `SelectionError` where a loss is NaN or infinite, and that is not allowed."""
        if policy == "keep" or not self.nonfinite or self.column is None:
            return
        count, first = 0, np.zeros(0, np.uint64)
        for ids in rows.chunks():
            bad = ids[np.isinf(self._ascending(ids))]
            count += len(bad)
            first = np.concatenate([first, bad])[:6]
        if count:
            raise SelectionError(
                f"{count:,} row{'s have' if count > 1 else ' has'} a loss that is NaN or infinite: "
                f"{examples(first)}. Find out why, or let such rows take part always with "
                "nonfinite=keep."
            )


def finite_rows(ids: U64 | range, found: F32) -> LossRows:
    """Return rows whose losses may be infinite, which counts as never scored."""
    return LossRows.of(ids, found, np.isfinite(found))


def signals_digest(digests: Mapping[str, str | None]) -> str | None:
    """Return the digest of the signals that a job used; None of none."""
    found = {key: one for key, one in digests.items() if one is not None}
    return digest(found) if len(found) > 1 else next(iter(found.values()), None)
