"""Rows of features, float32, from columns of the dataset or from a signal."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from ..dataplane.columns import as_arrow, as_matrix, numpy_type
from ..dataplane.dataset import Dataset
from ..dataplane.errors import ColumnTypeError, JobSpecError
from ..dataplane.parameters import parameters
from ..dataplane.row_column import RowColumn
from ..dataplane.rowset import RowSet
from .context import JobContext
from .invalid import settle_invalid
from .signal_reading import signal_features
from .stages import Columns

if TYPE_CHECKING:
    from .spec import JobSpec

__all__ = ["FeatureInput", "Features", "feature_width", "read_rows", "usable_rows"]

_AT_ONCE = 1 << 16  # rows that are looked at together


@dataclass(frozen=True)
class Features:
    """Features of rows.

    Attributes
    ----------
    rows : RowSet
    column : RowColumn of float32, shape (d,) a row
        By rank among `rows`; NaN where a row has none.
    """

    rows: RowSet
    column: RowColumn


@parameters
class FeatureInput:
    """Where a stage's features are."""

    columns: Annotated[
        Columns | None,
        Field(description="an embedding or gradient column, or numeric columns, by name"),
    ] = None
    feature: Annotated[
        str, Field(description="name of the signal that holds the features, where no column does")
    ] = "gradient"

    def check_input(self, name: str, spec: JobSpec) -> None:
        """Raise `JobSpecError` where the job does not say where the features are."""
        if self.columns is None and spec.signal is None:
            raise JobSpecError(
                f"{name} needs features: name columns of the dataset (--set columns=NAME), or "
                "give --signal DIR, where a training wrote them (--set feature=gradient)."
            )

    def waits_for_signal(self, epochs: tuple[int, int]) -> bool:
        """Whether the features are none of the dataset's own; see `Stage.waits_for_signal`."""
        del epochs
        return self.columns is None

    @property
    def invalid_values(self) -> str:
        """What values cannot be used, for messages."""
        return f"NaN, infinite or {'missing' if self.columns is None else 'null'}"

    @property
    def place(self) -> str:
        """Where the features are, for messages."""
        if self.columns is None:
            return f"the signal '{self.feature}'"
        return ", ".join(self.columns)

    def read_signal(self, job: JobContext) -> None:
        """Read the features of all rows from the signal, where they are there."""
        key = f"signal {self.feature}"
        if self.columns is None and key not in job.kept:
            found, job.digests[key] = signal_features(job, job.signal, self.feature, job.epochs[0])
            job.kept[key] = Features(RowSet(job.dataset.snapshot), found)

    def read_features(self, job: JobContext, rows: RowSet) -> Features:
        """Read the features of the rows that take part; after `read_signal`."""
        if self.columns is None:
            found: Features = job.kept[f"signal {self.feature}"]
            return found
        for column in self.columns:
            feature_width(job.dataset, column)
        return Features(
            rows,
            job.map_rows(
                "reading features", read_rows, rows, self.columns, columns=list(self.columns)
            ),
        )


def usable_rows(job: JobContext, rows: RowSet, features: Features, source: FeatureInput) -> RowSet:
    """Return the rows whose features are finite; others end the job, or are left out.

    Parameters
    ----------
    job : JobContext
    rows : RowSet
        Among ``features.rows``.
    features : Features
    source : FeatureInput
        Where they are from.
    """

    def finite(ids: npt.NDArray[np.uint64], _: slice) -> npt.NDArray[np.bool_]:
        out = np.empty(len(ids), bool)
        ranks = features.rows.ranks(ids)
        for start in range(0, len(ids), _AT_ONCE):
            here = slice(start, start + _AT_ONCE)
            out[here] = np.isfinite(features.column.at(ranks[here])).all(axis=1)
        return out

    kept = rows.filter(finite)
    bad = itertools.chain.from_iterable(ids[~kept.contains(ids)] for ids in rows.chunks())
    settle_invalid(
        source.invalid_values,
        [source.place],
        len(rows) - len(kept),
        itertools.islice(bad, 6),
        job.on_invalid,
        job.progress,
    )
    return kept


def feature_width(dataset: Dataset, column: str) -> int:
    """Return the numbers a row of a column, which must be numeric."""
    type_ = dataset.schema.field(column).type
    known = numpy_type(type_)
    if known is None:
        raise ColumnTypeError(
            f"Column '{column}' is {type_}: expected numbers or fixed-size lists of numbers."
        )
    return int(np.prod(known[1], dtype=np.int64))


def read_rows(batch: pa.RecordBatch, ids: Any, columns: list[str]) -> npt.NDArray[np.float32]:
    """Return the batch as float32 rows, all NaN where a value is null; a row function."""
    valid = np.ones(batch.num_rows, dtype=bool)
    for column in columns:
        valid &= _without_nulls(batch.column(column))
    if valid.all():
        return as_matrix(batch, columns)
    whole = as_matrix(batch.take(as_arrow(np.flatnonzero(valid))), columns)
    out = np.full((batch.num_rows, whole.shape[1]), np.nan, dtype=np.float32)
    out[valid] = whole
    return out


def _without_nulls(array: pa.Array) -> npt.NDArray[np.bool_]:
    """Return which rows hold no null, at any depth of fixed-size lists."""
    valid = np.array(array.is_valid())
    while pa.types.is_fixed_size_list(array.type):
        size = array.type.list_size
        # Null lists keep their slots, so that a row's values stay where they are.
        inner = array.values.slice(array.offset * size, len(array) * size)
        if inner.null_count and not pa.types.is_fixed_size_list(inner.type):
            valid &= np.array(pc.is_valid(inner)).reshape(len(valid), -1).all(axis=1)
        array = inner
    return valid
