"""The source of each row: the dataset's own named sources, or the values of a column."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..dataplane.errors import SelectionError
from ..dataplane.row_column import RowColumn, sum_counts
from ..dataplane.rowset import RowSet
from .codes import read_codes
from .context import JobContext

__all__ = ["Sources", "read_sources"]

I32 = npt.NDArray[np.int32]


@dataclass(frozen=True)
class Sources:
    """Where rows are from.

    Attributes
    ----------
    rows : RowSet
    names : tuple
        Ascending.
    codes : RowColumn of int32
        Place of each row's source among the names, by rank.
    counts : int64, shape (c,)
        Rows of each.
    """

    rows: RowSet
    names: tuple[Any, ...]
    codes: RowColumn
    counts: npt.NDArray[np.int64]


def read_sources(
    job: JobContext, rows: RowSet, column: str | None, *, what: str = "source"
) -> Sources:
    """Return the sources of rows.

    Parameters
    ----------
    job : JobContext
    rows : RowSet
    column : str or None
        None: the dataset's own sources.
    what : str
        What the caller takes the sources for; for messages.

    Raises
    ------
    SelectionError
        Where a row has none, or the dataset has but one source and no column is named.
    """
    if column is None:
        names, codes = _of_dataset(job, rows, what)
    else:
        names, codes = _of_column(job, rows, column, what)
    counts = sum_counts(np.bincount(part, minlength=len(names)) for part in codes.chunks())
    return Sources(rows, names, codes, counts)


def _of_dataset(job: JobContext, rows: RowSet, what: str) -> tuple[tuple[Any, ...], RowColumn]:
    fragments = job.dataset.snapshot.fragments
    names = sorted({f.source for f in fragments})
    if len(names) == 1:
        option = "sources" if what == "source" else "column"
        raise SelectionError(
            f"The dataset has one source, '{names[0]}': name the column of the {what}s "
            f"(--set {option}=COLUMN), or plan a dataset of several named sources."
        )
    of_fragment = np.array([names.index(f.source) for f in fragments], np.int32)
    snapshot = job.dataset.snapshot
    codes = job.column(of_fragment[snapshot.locate(ids)[0]] for ids in rows.chunks())
    return tuple(names), codes


def _of_column(
    job: JobContext, rows: RowSet, column: str, what: str
) -> tuple[tuple[Any, ...], RowColumn]:
    hashed = read_codes(job, rows, column)
    values = _values(job, rows, hashed, column, what)
    order = sorted(range(len(values)), key=lambda code: values[code])
    place = np.empty(len(values), np.int32)
    place[order] = np.arange(len(values), dtype=np.int32)
    codes = job.column(place[part] for part in hashed.chunks())
    return tuple(values[code] for code in order), codes


def _values(job: JobContext, rows: RowSet, codes: RowColumn, column: str, what: str) -> list[Any]:
    """Return the value of each code: that of the first row that has it."""
    firsts: dict[int, int] = {}
    start = 0
    for part in codes.chunks():
        found, where = np.unique(part, return_index=True)
        for code, at in zip(found.tolist(), where.tolist(), strict=True):
            firsts.setdefault(code, start + at)
        start += len(part)
    ranks = np.array([firsts[code] for code in sorted(firsts)], np.int64)
    ids = rows.at(ranks)
    values: list[Any] = job.dataset.take(ids, [column]).column(column).to_pylist()
    for row, value in zip(ids.tolist(), values, strict=True):
        if value is None or value != value:
            raise SelectionError(
                f"Row {row} has no {what}: its '{column}' is {'null' if value is None else value}. "
                "Give it one, or leave such rows out (--where "
                f"'{column} is not null')."
            )
    return values
