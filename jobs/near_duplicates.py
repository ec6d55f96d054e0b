"""The select stage ``near-duplicates``: of rows that are almost the same, one is kept."""

from __future__ import annotations

import heapq
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..clustering.near_duplicates import NearDuplicateSettings, duplicate_report
from ..dataplane.parameters import parameters
from ..dataplane.row_column import ColumnWriter, RowColumn, Segment
from .cluster_rows import ClusterRows, ClusterTask, each_cluster
from .cluster_selects import ClusterSelect
from .context import JobContext
from .loss_stages import settings_of
from .stages import Choice, PlanState

__all__ = ["NearDuplicateSelect"]

_SHOWN = 8  # examples that are told


@parameters
class NearDuplicateSelect(NearDuplicateSettings, ClusterSelect):
    """Parameters of the removal of near-duplicates."""

    method = "near-duplicates"
    summary = "one of each set of rows that are almost the same; for web-scale, repetitive data"
    source = (
        "Abbas et al., SemDeDup: Data-efficient learning at web-scale through semantic "
        "deduplication, 2023"
    )
    example = (
        "batchloom plan near-duplicates data/ --out plan/ --set columns=embedding "
        "--set threshold=0.97"
    )
    about = (
        "Rows are compared within clusters only: fewer clusters find more and take longer. Which "
        "threshold is right depends on the embedding; the plan's report lists examples of rows "
        "that were removed, what each is a near-duplicate of, and their cosine: look at them."
    )

    def pairs(self, rows: int) -> float:
        return rows * rows / 2 / self.clusters(rows)

    def select(self, job: JobContext, state: PlanState, epoch: int) -> Choice:
        found = self.cluster_rows(job, state)
        settings = NearDuplicateSettings(**settings_of(self, NearDuplicateSettings))
        parts = found.run("comparing", compare_clusters, settings, pairs=True)
        removed = RowColumn(p.removed for p in parts)
        rows = found.keep(lambda here: ~removed[here])
        report = duplicate_report(
            len(found.rows),
            len(found.rows) - len(rows),
            sum(p.pairs for p in parts),
            len(found.sizes),
            sum(p.clusters for p in parts),
            int(found.sizes.max()),
        )
        report |= {"examples": _examples(found, parts), "invalid_rows": found.invalid}
        return Choice(rows, report=report)


def _examples(found: ClusterRows, parts: list[Compared]) -> list[dict[str, Any]]:
    """Return the removed rows of the highest cosines and of those next to the threshold."""
    pairs = _ends([pair for p in parts for pair in p.examples])
    places = np.array([place for _, *both in pairs for place in both], np.int64)
    ids = found.rows.at(found.ranks.at(places)).tolist()
    return [
        {"removed": ids[2 * i], "near_duplicate_of": ids[2 * i + 1], "cosine": cosine}
        for i, (cosine, *_) in enumerate(pairs)
    ]


def _ends(pairs: list[tuple[float, int, int]]) -> list[tuple[float, int, int]]:
    """Return the pairs of the lowest cosines, and of the highest."""
    half = _SHOWN // 2
    low = heapq.nsmallest(half, pairs)
    high = heapq.nlargest(half, set(pairs) - set(low))
    return sorted([*low, *high])


@dataclass(frozen=True)
class Compared:
    """What a task found.

    Attributes
    ----------
    removed : Segment of bool
        Of its rows, in the order of its clusters.
    pairs : int
    clusters : int
        That have near-duplicates.
    examples : tuple of (float, int, int)
        Cosine, place of a row that is removed, and of the one that it is near to.
    """

    removed: Segment
    pairs: int
    clusters: int
    examples: tuple[tuple[float, int, int], ...]


def compare_clusters(task: ClusterTask, settings: NearDuplicateSettings, folder: str) -> Compared:
    """Find the near-duplicates in a task's clusters; runs on workers."""
    offsets = np.load(task.files.offsets, mmap_mode="r")
    pairs = clusters = 0
    examples: list[tuple[float, int, int]] = []
    with ColumnWriter(Path(folder) / f"removed-{uuid.uuid4().hex[:12]}") as writer:
        for cluster, rows, width, rows_at in each_cluster(task):
            found = settings.in_cluster(rows_at, rows, width)
            writer.append(found.removed)
            pairs += found.pairs
            clusters += found.pairs > 0
            start = int(offsets[cluster])
            gone = np.flatnonzero(found.removed)
            order = gone[np.argsort(found.cosines[gone], kind="stable")]
            shown = np.unique(np.append(order[:_SHOWN], order[-_SHOWN:]))
            examples += [
                (float(found.cosines[i]), start + i, start + int(found.original[i]))
                for i in shown.tolist()
            ]
            examples = _ends(examples)
        return Compared(writer.finish(), pairs, clusters, tuple(examples))
