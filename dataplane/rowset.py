"""An ascending set of row ids that answers rank → row id.

All rows of a snapshot take no memory; a selection is one sorted array.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .errors import SelectionError
from .snapshot import Snapshot

__all__ = ["RowSet"]

U64 = npt.NDArray[np.uint64]


@dataclass(frozen=True)
class RowSet:
    """Rows of a snapshot.

    Attributes
    ----------
    snapshot : Snapshot
    chosen : uint64, ascending, or None
        None: all rows.
    """

    snapshot: Snapshot
    chosen: U64 | None = None

    def __len__(self) -> int:
        return self.snapshot.rows if self.chosen is None else len(self.chosen)

    def at(self, ranks: npt.NDArray[np.integer]) -> U64:
        """Return the row ids at ranks 0…len−1."""
        if self.chosen is None:
            return self.snapshot.ids_at(ranks)
        chosen: U64 = self.chosen[ranks]
        return chosen

    def ids(self) -> U64:
        """Return all row ids, ascending."""
        return self.at(np.arange(len(self))) if self.chosen is None else self.chosen

    def keep(self, mask: npt.NDArray[np.bool_]) -> RowSet:
        """Return the rows at which a mask over the ranks is set."""
        if len(mask) != len(self):
            raise SelectionError(f"A mask of {len(mask)} values cannot select of {len(self)} rows.")
        return self if mask.all() else RowSet(self.snapshot, self.ids()[mask])
