"""Which rows an epoch holds: counted exactly, in one bit a row."""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt

from .random import compiled_kernels
from .snapshot import Snapshot

__all__ = ["Coverage", "CoverageKind"]

CoverageKind = Literal["exactly_once", "subset", "with_replacement"]

_HALVES = np.arange(1 << 16, dtype=np.uint16)
_POPCOUNT = np.unpackbits(_HALVES.view(np.uint8)).reshape(-1, 16).sum(axis=1, dtype=np.uint8)


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
        self._words = np.zeros(-(-snapshot.rows // 64), dtype=np.uint64)
        self._counted: int | None = 0  # None: counted again when it is asked for
        self.samples = 0

    def mark(self, ids: npt.NDArray[np.uint64]) -> None:
        """Mark row ids; `RowIdError` where one is in no fragment."""
        positions = self._snapshot.positions(ids)
        self.samples += len(positions)
        compiled = compiled_kernels(len(positions))
        if compiled is not None:
            compiled.mark_bits(self._words, positions)
        else:
            bits = np.uint64(1) << (positions & 63).astype(np.uint64)
            np.bitwise_or.at(self._words, positions >> 6, bits)
        self._counted = None

    @property
    def distinct(self) -> int:
        if self._counted is None:
            halves = self._words.view(np.uint16)
            pieces = range(0, len(halves), 1 << 20)
            self._counted = sum(
                int(_POPCOUNT[halves[i : i + (1 << 20)]].sum(dtype=np.int64)) for i in pieces
            )
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
            if fragment.rows and self._any(start, start + fragment.rows):
                found.append(index)
            start += fragment.rows
        return found

    def _any(self, start: int, stop: int) -> bool:
        first, last = start // 64, -(-stop // 64)
        inside = self._words[first:last]
        if len(inside) > 2 and inside[1:-1].any():
            return True
        bits = np.unpackbits(inside[[0, -1]].astype("<u8").view(np.uint8), bitorder="little")
        if len(inside) == 1:
            return bool(bits[start % 64 : stop - first * 64].any())
        return bool(bits[start % 64 : 64].any() or bits[64 : 64 + stop - (last - 1) * 64].any())
