"""What a source of rows has read."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["SourceStats"]


@dataclass(frozen=True)
class SourceStats:
    """What a source has read so far.

    Attributes
    ----------
    bytes_read : int
        Decoded or fetched; memory-mapped chunks count once, when they are first opened.
    hits, misses : int
        Chunks that were at hand, and that had to be read.
    """

    bytes_read: int = 0
    hits: int = 0
    misses: int = 0

    def plus(self, other: SourceStats) -> SourceStats:
        return SourceStats(
            self.bytes_read + other.bytes_read,
            self.hits + other.hits,
            self.misses + other.misses,
        )
