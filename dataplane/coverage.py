"""Which rows an epoch holds: counted exactly, in one bit a row."""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt

from .bitmap import Bitmap, count_bits, set_bits
from .snapshot import Snapshot

__all__ = ["Coverage", "CoverageKind"]

CoverageKind = Literal["exactly_once", "subset", "with_replacement"]


class Coverage:
    """Marks rows of a snapshot as planned.

    Attributes
    ----------
    samples : int
        Rows marked, repeats counted.
    distinct : int
        Different rows marked.
    """

    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot
        self._marked = Bitmap(np.zeros(-(-snapshot.rows // 64), dtype=np.uint64))
        self._counted: int | None = 0  # None: counted again when it is asked for
        self.samples = 0

    def mark(self, ids: npt.NDArray[np.uint64]) -> None:
        """Mark row ids; `RowIdError` where one is in no fragment."""
        positions = self._snapshot.positions(ids)
        self.samples += len(positions)
        set_bits(self._marked.words, positions)
        self._counted = None

    @property
    def distinct(self) -> int:
        if self._counted is None:
            self._counted = count_bits(self._marked.words)
        return self._counted

    @property
    def kind(self) -> CoverageKind:
        if self.distinct < self.samples:
            return "with_replacement"
        return "exactly_once" if self.distinct == self._snapshot.rows else "subset"

    def fragments(self) -> list[int]:
        """Indices of the fragments that hold a marked row."""
        if self.distinct == self._snapshot.rows:
            return [i for i, f in enumerate(self._snapshot.fragments) if f.rows]
        found, start = [], 0
        for index, fragment in enumerate(self._snapshot.fragments):
            if self._marked.count(start, start + fragment.rows):
                found.append(index)
            start += fragment.rows
        return found
