"""Rows whose key is in a list of keys: what ``keep`` and ``drop`` select by."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["match_keys"]

U64 = npt.NDArray[np.uint64]


def match_keys(rows: U64, wanted: U64) -> npt.NDArray[np.int64]:
    """Return for each row the index of its key in `wanted`, or −1.

    Parameters
    ----------
    rows : uint64, shape (n,)
        Keys of the rows: row ids, or hashes of a key column.
    wanted : uint64, shape (k,)
        Ascending and distinct.

    Returns
    -------
    int64, shape (n,)
    """
    if not len(wanted):
        return np.full(len(rows), -1, dtype=np.int64)
    at = np.minimum(np.searchsorted(wanted, rows), len(wanted) - 1)
    return np.where(wanted[at] == rows, at, -1)
