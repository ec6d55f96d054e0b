"""What a source of rows has read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

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
    bytes_by_path : mapping
        Bytes of rows by the way that they took to a GPU: ``zero_copy``, ``alias``.
    line_requests : int
        Lines of 128 bytes that GPU threads asked of host memory.
    """

    bytes_read: int = 0
    hits: int = 0
    misses: int = 0
    bytes_by_path: Mapping[str, int] = field(default_factory=dict)
    line_requests: int = 0

    def plus(self, other: SourceStats) -> SourceStats:
        return SourceStats(
            self.bytes_read + other.bytes_read,
            self.hits + other.hits,
            self.misses + other.misses,
            {
                path: self.bytes_by_path.get(path, 0) + other.bytes_by_path.get(path, 0)
                for path in sorted({*self.bytes_by_path, *other.bytes_by_path})
            },
            self.line_requests + other.line_requests,
        )
