"""What a loader has done, how long its caller waited for it, and what held it up.

A caller who waits for more than a fifth of the time is told once, by a warning in the log that
names the stage that took longest: *storage* (gathering rows), *transform* or *transfer* (to the
device).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from threading import Lock
from typing import Literal

from .source_stats import SourceStats
from .transforms import Run
from .walk import Cursor

__all__ = ["LoaderStats", "Meter", "Stage"]

Stage = Literal["storage", "transform", "transfer"]

_TOO_LONG = 0.2  # share of the time that a caller may wait
_PATIENCE = 10.0  # seconds of iterating before the warning

_ADVICE: dict[Stage, str] = {
    "storage": (
        "pack the columns once (batchloom pack), give more cache_bytes, a larger window or a plan "
        "whose rows stand closer together (--set mode=block)"
    ),
    "transform": "give it transform_threads or, where it holds the GIL, transform_workers",
    "transfer": "move fewer columns, or smaller types",
}

_log = logging.getLogger("batchloom")


@dataclass(frozen=True)
class LoaderStats:
    """Over all iterations of a loader.

    Attributes
    ----------
    batches, samples : int
        Delivered.
    bytes : int
        Of the columns delivered, as gathered.
    seconds : float
        From an iteration's first batch asked for to its last one delivered.
    waited_seconds : float
        Of them, how long the caller waited for the loader.
    storage_seconds, transform_seconds, transfer_seconds : float
        Spent in each stage, on whatever threads or worker processes: with several at once, more
        than the time that passed.
    bytes_read, hits, misses, bytes_by_path, line_requests
        What the source did; see `source_stats.SourceStats`.
    """

    batches: int = 0
    samples: int = 0
    bytes: int = 0
    seconds: float = 0.0
    waited_seconds: float = 0.0
    storage_seconds: float = 0.0
    transform_seconds: float = 0.0
    transfer_seconds: float = 0.0
    bytes_read: int = 0
    hits: int = 0
    misses: int = 0
    bytes_by_path: Mapping[str, int] = field(default_factory=dict)
    line_requests: int = 0

    @property
    def samples_per_second(self) -> float:
        return self.samples / self.seconds if self.seconds else 0.0

    @property
    def gb_per_second(self) -> float:
        """In 10⁹ bytes."""
        return self.bytes / 1e9 / self.seconds if self.seconds else 0.0

    @property
    def waited(self) -> float:
        """Share of the time that the caller waited."""
        return self.waited_seconds / self.seconds if self.seconds else 0.0

    @property
    def hit_rate(self) -> float | None:
        """Share of the chunks that were at hand; None where none was asked for."""
        asked = self.hits + self.misses
        return self.hits / asked if asked else None

    @property
    def read_amplification(self) -> float | None:
        """Bytes read for each byte delivered; None before the first."""
        return self.bytes_read / self.bytes if self.bytes else None

    @property
    def bottleneck(self) -> Stage:
        """The stage that took longest."""
        stages: list[tuple[float, Stage]] = [
            (self.storage_seconds, "storage"),
            (self.transform_seconds, "transform"),
            (self.transfer_seconds, "transfer"),
        ]
        return max(stages)[1]


class Meter:
    """Counts for `LoaderStats`; stages count from several threads."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._stages: dict[Stage, float] = {"storage": 0.0, "transform": 0.0, "transfer": 0.0}
        self._batches = self._samples = self._bytes = 0
        self._seconds = self._waited = 0.0
        self._asked: float | None = None
        self._newest: tuple[Cursor, Run] | None = None
        self._warned = False

    def spent(self, stage: Stage, seconds: float) -> None:
        """Count time for a stage."""
        with self._lock:
            self._stages[stage] += seconds

    def settle(self, cursor: Cursor | None = None) -> None:
        """End an iteration, or the newest: what it took ahead will not be delivered."""
        if cursor is not None and (self._newest is None or self._newest[0] is not cursor):
            return
        batches, samples, size = self._ahead()
        self._batches -= batches
        self._samples -= samples
        self._bytes -= size
        self._newest = self._asked = None

    def took(self, cursor: Cursor, run: Run, begun: float) -> None:
        """Count what came into the caller's thread, who asked for it at `begun`."""
        now = time.perf_counter()
        self._waited += now - begun
        self._seconds += now - (begun if self._asked is None else self._asked)
        self._asked = now
        batches, samples, size = _counts(run, run.first)
        self._batches += batches
        self._samples += samples
        self._bytes += size
        self._newest = cursor, run

    def _ahead(self) -> tuple[int, int, int]:
        """Return batches, samples and bytes that were taken and not asked for yet."""
        if self._newest is None:
            return 0, 0, 0
        cursor, run = self._newest
        return _counts(run, cursor.index + 1)

    def stats(self, source: SourceStats) -> LoaderStats:
        """Return the numbers."""
        ahead = self._ahead()
        with self._lock:
            stages = dict(self._stages)
        return LoaderStats(
            self._batches - ahead[0],
            self._samples - ahead[1],
            self._bytes - ahead[2],
            self._seconds,
            self._waited,
            stages["storage"],
            stages["transform"],
            stages["transfer"],
            source.bytes_read,
            source.hits,
            source.misses,
            source.bytes_by_path,
            source.line_requests,
        )

    def warn(self, source: Callable[[], SourceStats]) -> None:
        """Say once what the caller waits for, where that is too long."""
        if self._warned or self._seconds < _PATIENCE or self._waited < _TOO_LONG * self._seconds:
            return
        self._warned = True
        stats = self.stats(source())
        _log.warning(
            "The training loop waited for the loader %d %% of the last %.0f seconds; the "
            "bottleneck is %s: %s.",
            100 * stats.waited,
            stats.seconds,
            stats.bottleneck,
            _ADVICE[stats.bottleneck],
        )


def _counts(run: Run, first: int) -> tuple[int, int, int]:
    """Return batches, samples and bytes of a run from one batch of its window on."""
    sizes = run.pieces.sizes[first : run.first + len(run.results)]
    samples = sum(sizes)
    return len(sizes), samples, run.window.bytes * samples // len(run.pieces.ids)
