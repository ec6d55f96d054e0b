"""Scanning a dataset: its fragment table, schema, fingerprint, column statistics and quantiles."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ..dataplane.columns import numpy_type
from ..dataplane.dataset import Dataset, DatasetLike, open_dataset
from ..dataplane.errors import OnInvalid
from ..dataplane.snapshot import write_deep_hashes
from ..dataplane.storage import locate
from .engine import Engine
from .hashing import hash_dataset
from .progress import Progress, QuietProgress
from .quantiles import ColumnQuantiles, scan_quantiles
from .tasks import TASK_BYTES, ScanTask, group_tasks, scan_task

__all__ = ["ColumnStatistics", "ScanResult", "scan", "scan_statistics"]

_ZERO = Fraction(0)


@dataclass(frozen=True)
class ColumnStatistics:
    """What a pass over a column counted.

    Attributes
    ----------
    name, type : str
    rows, nulls : int
    not_finite : int
        NaN and infinite values, of numbers and of fixed-size lists of numbers.
    low, high, mean : float or None
        Of the finite values; None of columns that are no numbers.
    """

    name: str
    type: str
    rows: int = 0
    nulls: int = 0
    not_finite: int = 0
    low: float | None = None
    high: float | None = None
    mean: float | None = None


@dataclass(frozen=True)
class ScanResult:
    """A dataset and what was counted of it."""

    dataset: Dataset
    columns: tuple[ColumnStatistics, ...]
    deep_file: Path | str | None = None
    quantiles: tuple[ColumnQuantiles, ...] = ()

    def to_json(self) -> dict[str, Any]:
        snapshot = self.dataset.snapshot
        asked = {"quantiles": [q.to_json() for q in self.quantiles]} if self.quantiles else {}
        return {
            "fingerprint": snapshot.fingerprint,
            "rows": snapshot.rows,
            "next_row_id": snapshot.next_row_id,
            "schema_digest": snapshot.schema_digest,
            "fragments": [asdict(f) for f in snapshot.fragments],
            "columns": [asdict(c) for c in self.columns],
            **asked,
        }


def scan(
    data: DatasetLike,
    *,
    since: str | Path | None = None,
    out: str | Path | None = None,
    deep: bool = False,
    statistics: bool = True,
    quantiles: Mapping[str, Sequence[float]] | None = None,
    on_invalid: OnInvalid = "fail",
    engine: Engine | None = None,
    progress: Progress | None = None,
    storage_options: Mapping[str, Any] | None = None,
) -> ScanResult:
    """List a dataset, count its columns, and optionally write its snapshot.

    Parameters
    ----------
    data : path, URI, list or mapping
    since : path or URI, optional
        Snapshot or manifest whose row ids are kept.
    out : path or URI, optional
        Snapshot file to write.
    deep : bool
        Hash the files' bytes too; written as ``deep-<sha256>.json`` beside `out`.
    statistics : bool
        Read all columns once.
    quantiles : mapping from str to sequence of float, optional
        Shares in the range [0, 1] by column, such as ``{"loss": [0.5, 0.99]}``: exact quantiles, of
        two more passes over these columns, or four where a number has 64 bits (`quantiles`).
    on_invalid : {'fail', 'drop'}
        What to do where a value of these is NaN or null.
    engine : Engine, optional
        This process when None.
    """
    progress, engine = progress or QuietProgress(), engine or Engine(workers=0)
    dataset = open_dataset(data, since=since, storage_options=storage_options)
    found = scan_quantiles(dataset, engine, progress, quantiles or {}, on_invalid=on_invalid)
    columns = scan_statistics(dataset, engine, progress) if statistics else ()
    deep_file = None
    if out is not None:
        dataset.snapshot.save(out, storage_options=storage_options)
        if deep:
            hashes = hash_dataset(dataset, engine, progress)
            deep_file = write_deep_hashes(locate(out, storage_options).parent(), hashes)
    return ScanResult(dataset, columns, deep_file, found)


def scan_statistics(
    dataset: Dataset,
    engine: Engine,
    progress: Progress,
    columns: list[str] | None = None,
    task_bytes: int = TASK_BYTES,
) -> tuple[ColumnStatistics, ...]:
    """Count columns on the engine; how the rows are cut into tasks changes no count."""
    names = list(dataset.schema.names if columns is None else columns)
    dataset.check_columns(names)
    tasks = group_tasks(dataset.present(), task_bytes)
    parts: dict[int, list[_Counts]] = {}
    with progress.step("scanning", dataset.rows) as step:
        for position, counts in engine.map(count_columns, tasks, names, dataset.schema):
            parts[position] = counts
            step.advance(tasks[position].rows)
    out = []
    for index, name in enumerate(names):
        total = _Counts()
        for position in sorted(parts):
            total = total.plus(parts[position][index])
        out.append(total.statistics(name, str(dataset.schema.field(name).type)))
    return tuple(out)


@dataclass(frozen=True)
class _Counts:
    """Mergeable counts of a column; the sum is exact, so that it may be added in any order."""

    rows: int = 0
    nulls: int = 0
    not_finite: int = 0
    values: int = 0
    total: Fraction = _ZERO
    low: float = float("inf")
    high: float = float("-inf")

    def plus(self, other: _Counts) -> _Counts:
        return _Counts(
            self.rows + other.rows,
            self.nulls + other.nulls,
            self.not_finite + other.not_finite,
            self.values + other.values,
            self.total + other.total,
            min(self.low, other.low),
            max(self.high, other.high),
        )

    def statistics(self, name: str, type_: str) -> ColumnStatistics:
        counted = ColumnStatistics(name, type_, self.rows, self.nulls, self.not_finite)
        if not self.values:
            return counted
        return ColumnStatistics(
            name,
            type_,
            self.rows,
            self.nulls,
            self.not_finite,
            self.low,
            self.high,
            float(self.total / self.values),
        )


def count_columns(task: ScanTask, columns: list[str], schema: pa.Schema) -> list[_Counts]:
    """Count a task's columns; runs on workers."""
    totals = [_Counts() for _ in columns]
    for part in scan_task(task, columns, schema):
        for i, name in enumerate(columns):
            totals[i] = totals[i].plus(_count(part.batch.column(name)))
    return totals


def _count(array: pa.Array) -> _Counts:
    rows, nulls = len(array), array.null_count
    known = numpy_type(array.type)
    if known is None:
        return _Counts(rows, nulls)
    from ..dataplane.columns import as_numpy

    if isinstance(array, pa.ExtensionArray):
        array = array.storage
    while pa.types.is_fixed_size_list(array.type):
        array = array.flatten()
    values = as_numpy(array.drop_null() if array.null_count else array)
    bad = 0
    if values.dtype.kind == "f":
        finite = np.isfinite(values)
        bad = int(values.size - np.count_nonzero(finite))
        values = values[finite] if bad else values
    if not values.size:
        return _Counts(rows, nulls, bad)
    return _Counts(
        rows,
        nulls,
        bad,
        values.size,
        _sum(values),
        float(values.min()),
        float(values.max()),
    )


def _sum(values: npt.NDArray[Any]) -> Fraction:
    with np.errstate(over="ignore"):
        total = float(values.sum(dtype=np.float64))
    return Fraction(total) if math.isfinite(total) else sum(map(Fraction, values.tolist()), _ZERO)
