"""Choosing small batches by tasks: some micro-batches each, with the features of their rows.

A micro-batch is chosen from alone, so tasks, their order and the workers change nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from ..coresets.batch_coresets import BatchCoreset
from ..coresets.facility_location import comparable_rows
from ..coresets.quality import ChoiceQuality, choice_quality
from .column_files import open_column

__all__ = [
    "BatchTask",
    "Chosen",
    "How",
    "as_rows",
    "batch_tasks",
    "choose_batches",
    "join_chosen",
]

_ROW = np.dtype([("id", "<u8"), ("rank", "<i8"), ("code", "<i4")])
_PAIRS = 2e10  # differences that a task computes: a second or so
_FEATURE_BYTES = 64 << 20  # that a task holds at a time
_MEASURED = 32  # of so many micro-batches the first one is measured


@dataclass(frozen=True)
class How:
    """How small batches are chosen; the same for all micro-batches of an epoch.

    Attributes
    ----------
    method : BatchCoreset
    k : int
        Rows of a small batch, or all where there are fewer.
    counts : dict of int to int
        Rows of each source in the dataset, by code.
    small : tuple of int, or None
        Sources to keep whole, where they are named.
    epoch : int
    features : str or None
        Listing of the files of features (`column_files`); None of a method that takes none.
    """

    method: BatchCoreset
    k: int
    counts: Mapping[int, int]
    small: tuple[int, ...] | None
    epoch: int
    features: str | None


@dataclass(frozen=True)
class BatchTask:
    """Micro-batches that a task chooses from.

    Attributes
    ----------
    file : str
        Of row ids, ranks and sources.
    offsets : tuple of int
        Of the micro-batches, in the file.
    number : int
        Of the first one in its epoch.
    """

    file: str
    offsets: tuple[int, ...]
    number: int

    @property
    def rows(self) -> int:
        return self.offsets[-1] - self.offsets[0]

    @property
    def label(self) -> str:
        return f"micro-batches {self.number:,} to {self.number + len(self.offsets) - 2:,}"

    @property
    def example(self) -> str | None:
        """A local file that it reads."""
        return self.file


@dataclass(frozen=True)
class Chosen:
    """What a task chose.

    Attributes
    ----------
    kept : bool, shape (n,)
        Which of the task's rows.
    weights : float32, shape (kept rows,), or None
    whole : bool, shape (kept rows,)
        Whether a row's source is kept whole.
    left_out : uint64, shape (l,)
        Row ids whose features cannot be compared.
    overflow : int
        Micro-batches whose small sources alone exceed k.
    cost : float
    measured : tuple of ChoiceQuality
    """

    kept: npt.NDArray[np.bool_]
    weights: npt.NDArray[np.float32] | None
    whole: npt.NDArray[np.bool_]
    left_out: npt.NDArray[np.uint64]
    overflow: int
    cost: float
    measured: tuple[ChoiceQuality, ...]


def as_rows(ids: Any, ranks: Any, codes: Any) -> npt.NDArray[Any]:
    """Return what a task reads of rows, as one array."""
    out = np.empty(len(ids), _ROW)
    out["id"], out["rank"], out["code"] = ids, ranks, codes
    return out


def batch_tasks(
    file: str, offsets: npt.NDArray[np.int64], number: int, width: int
) -> list[BatchTask]:
    """Cut micro-batches into tasks of about a second."""
    work = np.diff(offsets).astype(np.float64) ** 2 * max(32, width) / 2
    place = (np.cumsum(work) - work) // _PAIRS
    firsts = np.flatnonzero(np.append(True, place[1:] != place[:-1])).tolist()
    return [
        BatchTask(file, tuple(offsets[a : b + 1].tolist()), number + a)
        for a, b in zip(firsts, [*firsts[1:], len(offsets) - 1], strict=True)
    ]


def choose_batches(task: BatchTask, how: How) -> Chosen:
    """Choose a small batch of each of a task's micro-batches; runs on workers."""
    first, last = task.offsets[0], task.offsets[-1]
    rows = np.load(task.file, mmap_mode="r")[first:last]
    offsets = np.array(task.offsets) - first
    column = None if how.features is None else open_column(how.features)
    parts = []
    for a, b in _stretches(offsets, 4 * int(np.prod(column.shape)) if column else 0):
        here = rows[offsets[a] : offsets[b]]
        features = None if column is None else column.at(here["rank"])
        inside = offsets[a : b + 1] - offsets[a]
        parts += [
            _choose(
                here[i:j],
                None if features is None else features[i:j],
                how,
                measured=(task.number + a + at) % _MEASURED == 0,
            )
            for at, (i, j) in enumerate(pairwise(inside.tolist()))
        ]
    return join_chosen(parts)


def _stretches(offsets: npt.NDArray[np.int64], row_bytes: int) -> list[tuple[int, int]]:
    """Cut micro-batches so that the features of each stretch fit the memory."""
    place = offsets[:-1] * row_bytes // _FEATURE_BYTES
    firsts = np.flatnonzero(np.append(True, place[1:] != place[:-1])).tolist()
    return list(zip(firsts, [*firsts[1:], len(offsets) - 1], strict=True))


def _choose(rows: npt.NDArray[Any], features: Any, how: How, *, measured: bool) -> Chosen:
    usable = len(rows)
    if features is not None:
        usable = int(np.count_nonzero(comparable_rows(features, how.method.metric)))
    found = how.method.select(
        features,
        rows["code"],
        min(how.k, usable),
        source_counts=how.counts,
        small=how.small,
        ids=rows["id"],
        epoch=how.epoch,
    )
    picks = found.rows.astype(np.int64)
    kept = np.zeros(len(rows), bool)
    kept[picks] = True
    small = [s["source"] for s in found.report["sources"] if s["small"]]
    quality = None
    if measured and features is not None and len(picks):
        quality = choice_quality(
            features, picks, found.weights, rows["id"], metric=how.method.metric, epoch=how.epoch
        )
    return Chosen(
        kept,
        found.weights,
        np.isin(rows["code"][picks], small) & (not found.report["overflow"]),
        np.array(found.report["left_out"], np.uint64),
        int(found.report["overflow"]),
        found.report["cost"] or 0.0,
        () if quality is None else (quality,),
    )


def join_chosen(parts: Sequence[Chosen]) -> Chosen:
    """Return what was chosen of micro-batches that follow one another."""
    weights = [p.weights for p in parts if p.weights is not None]
    return Chosen(
        np.concatenate([p.kept for p in parts]),
        np.concatenate(weights) if weights else None,
        np.concatenate([p.whole for p in parts]),
        np.concatenate([p.left_out for p in parts]),
        sum(p.overflow for p in parts),
        float(sum(p.cost for p in parts)),
        tuple(q for p in parts for q in p.measured),
    )
