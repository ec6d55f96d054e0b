"""What gathers have cost: bytes by path, lines asked of the bus, hits of the cache, time waited."""

from __future__ import annotations

from dataclasses import asdict, dataclass

__all__ = ["GatherStats"]


@dataclass
class GatherStats:
    """Counts since a table was made, or since `reset`.

    Attributes
    ----------
    calls, rows : int
        Gathers, and the rows that they delivered.
    bytes_zero_copy, bytes_alias, bytes_staged, bytes_cpu : int
        Bytes of rows by the way that they took.
    line_requests : int
        Lines of 128 bytes that GPU threads asked of host memory: the mean over the ways that rows
        lie in lines, times the rows.
    cache_hits, cache_misses : int
        Ids whose rows a cache held, and did not; the bytes above are of all rows.
    seconds_waited : float
        Time that callers stood still for a gather to end.
    """

    calls: int = 0
    rows: int = 0
    bytes_zero_copy: int = 0
    bytes_alias: int = 0
    bytes_staged: int = 0
    bytes_cpu: int = 0
    line_requests: int = 0
    cache_hits: int = 0
    cache_misses: int = 0
    seconds_waited: float = 0.0

    def add(self, path: str, rows: int, nbytes: int, lines: float = 0.0) -> None:
        """Count a gather by the name of its backend."""
        self.calls += 1
        self.rows += rows
        name = f"bytes_{path}"
        setattr(self, name, getattr(self, name, 0) + nbytes)
        if lines:
            self.line_requests += round(lines)

    @property
    def hit_rate(self) -> float:
        """Share of rows that a cache held; 0 before the first."""
        asked = self.cache_hits + self.cache_misses
        return self.cache_hits / asked if asked else 0.0

    def as_dict(self) -> dict[str, int | float]:
        return asdict(self)

    def reset(self) -> None:
        self.__init__()  # type: ignore[misc]
