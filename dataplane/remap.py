"""Row ids of an old snapshot → row ids of a new one: one array over the old rows, and its use."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .rowset import RowSet
from .snapshot import Snapshot

__all__ = ["GONE", "RowMapping", "remap_rows"]

U64 = npt.NDArray[np.uint64]

GONE = np.uint64((1 << 64) - 1)
"""Stands in a mapping for a row that is not in the new snapshot; no row has this id."""


@dataclass(frozen=True)
class RowMapping:
    """Where the rows of an old snapshot are now.

    Attributes
    ----------
    old : Snapshot
    new_ids : uint64, shape (old.rows,)
        By rank among the old row ids; `GONE` where the row is no more. May be a mapped file.
    """

    old: Snapshot
    new_ids: U64


def remap_rows(rows: U64, mapping: RowMapping) -> tuple[U64, npt.NDArray[np.bool_]]:
    """Return the new ids of old row ids, and which of them are still there.

    Parameters
    ----------
    rows : uint64, shape (n,)
        Old row ids, repeats included. Those that the old snapshot does not hold count as gone.
    mapping : RowMapping

    Returns
    -------
    new : uint64, shape (n,)
        `GONE` where there is none.
    found : bool, shape (n,)
    """
    known = RowSet(mapping.old).contains(rows)
    new = np.full(len(rows), GONE)
    new[known] = mapping.new_ids[mapping.old.positions(rows[known])]
    return new, new != GONE
