"""Tasks over the rows of a plan in order of rank: what they read, some rows at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..dataplane.rowset import RowSet
from .column_files import open_column, share_column
from .context import JobContext
from .features import Features

__all__ = ["RankTask", "rank_tasks"]

TASK_BYTES = 256 << 20
"""Bytes of features that a task reads."""

READ_BYTES = 32 << 20
"""... of them at a time."""


@dataclass(frozen=True)
class RankTask:
    """Ranks of the rows that a task reads.

    Attributes
    ----------
    start, stop : int
    ids, places : str
        Listings (`column_files`): row ids by rank, and where their features are.
    features : str
    """

    start: int
    stop: int
    ids: str
    places: str
    features: str

    @property
    def rows(self) -> int:
        return self.stop - self.start

    @property
    def label(self) -> str:
        return f"rows {self.start:,} to {self.stop - 1:,}"

    @property
    def example(self) -> str | None:
        """A local file that it reads."""
        return self.ids

    def parts(self) -> Iterator[tuple[npt.NDArray[np.float32], npt.NDArray[np.uint64]]]:
        """Yield (features, row ids), some at a time."""
        ids, places = open_column(self.ids), open_column(self.places)
        features = open_column(self.features)
        step = max(1, READ_BYTES // (4 * max(1, int(np.prod(features.shape)))))
        for start in range(self.start, self.stop, step):
            here = slice(start, min(start + step, self.stop))
            yield features.at(places[here]), ids[here]


def rank_tasks(job: JobContext, rows: RowSet, features: Features) -> list[RankTask]:
    """Cut rows into tasks; all are among ``features.rows``."""
    ids = share_column(job, job.column(rows.chunks()))
    places = job.column(features.rows.ranks(part) for part in rows.chunks())
    shared = share_column(job, places), share_column(job, features.column)
    step = max(1, TASK_BYTES // (4 * max(1, int(np.prod(features.column.shape)))))
    starts = range(0, len(rows), step)
    return [RankTask(a, min(a + step, len(rows)), ids, *shared) for a in starts]
