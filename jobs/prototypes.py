"""The select stage ``prototypes``: rows nearest to the centers of their clusters, or farthest."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..clustering.centroids import distances_to_centroid
from ..clustering.prototypes import PrototypeSettings, prototype_report
from ..dataplane.compiled import compiled_kernels
from ..dataplane.parameters import parameters
from ..dataplane.row_column import ColumnWriter, RowColumn, Segment
from .cluster_rows import ClusterRows, ClusterTask, each_cluster
from .cluster_selects import ClusterSelect
from .context import JobContext
from .loss_stages import settings_of
from .stages import Choice, PlanState

__all__ = ["PrototypeSelect"]


@parameters
class PrototypeSelect(PrototypeSettings, ClusterSelect):
    """Parameters of the selection by prototypes."""

    method = "prototypes"
    summary = (
        "rows far from the centers of their clusters, or near: to prune abundant, or scarce, data"
    )
    source = (
        "Sorscher et al., Beyond neural scaling laws: beating power law scaling via data pruning, "
        "NeurIPS 2022"
    )
    example = (
        "batchloom plan prototypes data/ --out plan/ --set columns=embedding --set fraction=0.7"
    )
    about = (
        "Where data are abundant keep the farthest rows, where they are scarce the nearest. "
        "'balance' sees to it that no cluster loses most of its rows; the plan's report says what "
        "share of their rows clusters keep at least, and at most."
    )

    @property
    def unit_rows(self) -> bool:
        return self.metric == "cosine"

    def select(self, job: JobContext, state: PlanState, epoch: int) -> Choice:
        found = self.cluster_rows(job, state)
        quotas = self.quotas(found.sizes)
        settings = PrototypeSettings(**settings_of(self, PrototypeSettings))
        parts = found.run("distances", measure_clusters, settings, str(job.save(quotas)))
        distances = RowColumn(p.distances for p in parts)
        first = RowColumn(p.first for p in parts)
        compiled_kernels(len(found.rows))  # loaded here where they pay: chunks are small

        def others() -> Iterator[tuple[npt.NDArray[Any], npt.NDArray[Any]]]:
            for here in found.chunks():
                free = ~first[here]
                yield distances[here][free], found.ranks[here][free]

        wanted = self.kept_rows(len(found.rows)) - int(quotas.sum())
        cut = self.cut(others, wanted)
        told = _Told(found, distances)

        def keeps(here: slice) -> npt.NDArray[np.bool_]:
            inside: npt.NDArray[np.bool_] = first[here] | cut.keeps(
                distances[here], found.ranks[here]
            )
            told.add(here, inside)
            return inside

        rows = found.keep(keeps)
        report = prototype_report(found.sizes, told.kept, told.all, told.selected, cut)
        return Choice(rows, report={**report, "invalid_rows": found.invalid})


class _Told:
    """What is told of the rows that are kept."""

    def __init__(self, found: ClusterRows, distances: RowColumn) -> None:
        self._found, self._distances = found, distances
        self.kept = np.zeros(len(found.sizes), np.int64)
        self.all = self.selected = 0.0

    def add(self, here: slice, inside: npt.NDArray[np.bool_]) -> None:
        distances = self._distances[here]
        places = np.flatnonzero(inside) + here.start
        clusters = np.searchsorted(self._found.offsets, places, side="right") - 1
        self.kept += np.bincount(clusters, minlength=len(self.kept))
        self.all += float(distances.sum())
        self.selected += float(distances[inside].sum())


@dataclass(frozen=True)
class Measured:
    """What a task found, in the order of its clusters.

    Attributes
    ----------
    distances : Segment of float64
        To the centroid of the row's cluster.
    first : Segment of bool
        Which rows fill their cluster's quota.
    """

    distances: Segment
    first: Segment


def measure_clusters(
    task: ClusterTask, settings: PrototypeSettings, quotas_file: str, folder: str
) -> Measured:
    """Write the distances of a task's rows to files; runs on workers."""
    quotas = np.load(quotas_file, mmap_mode="r")
    name = uuid.uuid4().hex[:12]
    with (
        ColumnWriter(Path(folder) / f"distances-{name}") as distances,
        ColumnWriter(Path(folder) / f"first-{name}") as first,
    ):
        for cluster, rows, width, rows_at in each_cluster(task):
            away = distances_to_centroid(rows_at, rows, width, settings.metric)
            inside = np.zeros(rows, bool)
            if quotas[cluster]:
                ties = np.arange(rows, dtype=np.uint64)  # as their ids ascend
                inside = settings.first_of_cluster(away, ties, int(quotas[cluster]))
            distances.append(away)
            first.append(inside)
        return Measured(distances.finish(), first.finish())
