"""The digest of the signal values that a plan was made of.

SHA-256 over the digests of the snapshot's fragments that hold rows, in order; a fragment's is the
SHA-256 over its rows that have a finite value, ascending: row id (uint64), then the value's bits.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import numpy.typing as npt

from .snapshot import Snapshot

__all__ = ["RunningDigest"]


class RunningDigest:
    """Takes rows in ascending order, in as many calls as there are."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._stops = snapshot.stops
        self._all = hashlib.sha256()
        self._at = 0  # the fragment that is being hashed
        self._one = hashlib.sha256()

    def add(self, rows: npt.NDArray[np.uint64], values: npt.NDArray[Any]) -> None:
        """Add values of rows, float32 of shape (n,) or (n, width)."""
        width = 1 if values.ndim == 1 else values.shape[1]
        wide = np.ascontiguousarray(values, "<f4").reshape(len(rows), width)
        finite = np.isfinite(wide).all(axis=1)
        if not finite.all():
            rows, wide = rows[finite], wide[finite]
        record = np.empty(len(rows), [("row", "<u8"), ("value", "<f4", wide.shape[1:])])
        record["row"], record["value"] = rows, wide
        cuts = np.searchsorted(rows, self._stops)
        start = 0
        while start < len(rows):
            stop = int(cuts[self._at])
            self._one.update(record[start:stop].data)
            if stop < len(rows):
                self._next()
            start = stop

    def _next(self) -> None:
        self._all.update(self._one.digest())
        self._one = hashlib.sha256()
        self._at += 1

    def hexdigest(self) -> str:
        """Return the digest of all that was added; nothing can be added after it."""
        while self._at < len(self._stops):
            self._next()
        return self._all.hexdigest()
