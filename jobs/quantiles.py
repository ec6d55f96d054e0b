"""Exact quantiles of columns: counts of partitions, summed up pass by pass (`dataplane.sketch`).

A column of 32 bits is scanned twice, one of 64 bits four times, all columns in the same scans. What
a task returns are its counts, compressed: some kilobytes as a rule, and never more than half a
megabyte for eight quantiles.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ..dataplane.columns import as_numpy, numpy_type
from ..dataplane.compiled import compiled_kernels
from ..dataplane.dataset import Dataset, ScanPart, scan_fragment
from ..dataplane.errors import ColumnTypeError, OnInvalid, ParameterError
from ..dataplane.sketch import Pass, RankSearch, quantile_rank
from .engine import Engine
from .invalid import settle_invalid
from .progress import Progress
from .tasks import TASK_BYTES, ScanTask, group_tasks

__all__ = ["ColumnQuantiles", "Quantile", "count_pass", "scan_quantiles"]

I64 = npt.NDArray[np.int64]

_MOST = 100  # quantiles a column: each takes half a megabyte of a worker
_SHOWN = 6  # row ids that a message can need


@dataclass(frozen=True)
class Quantile:
    """A quantile of a column.

    Attributes
    ----------
    share : float
    rank : int or None
        Its place among the values in ascending order, counted from 1.
    value : numpy scalar or None
        None where the column holds no value.
    """

    share: float
    rank: int | None = None
    value: Any = None

    def to_json(self) -> dict[str, Any]:
        value = None if self.value is None else self.value.item()
        if isinstance(value, float) and math.isinf(value):
            value = "Infinity" if value > 0 else "-Infinity"  # JSON has no such number
        return {"share": self.share, "rank": self.rank, "value": value}


@dataclass(frozen=True)
class ColumnQuantiles:
    """Quantiles of a column.

    Attributes
    ----------
    name, type : str
    values : int
        Rows that took part.
    invalid : int
        Rows that were left out: NaN or null.
    quantiles : tuple of Quantile
        In the order asked for.
    """

    name: str
    type: str
    values: int
    invalid: int
    quantiles: tuple[Quantile, ...]

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "type": self.type,
            "values": self.values,
            "invalid": self.invalid,
            "quantiles": [q.to_json() for q in self.quantiles],
        }


def scan_quantiles(
    dataset: Dataset,
    engine: Engine,
    progress: Progress,
    wanted: Mapping[str, Sequence[float]],
    *,
    on_invalid: OnInvalid = "fail",
    task_bytes: int = TASK_BYTES,
) -> tuple[ColumnQuantiles, ...]:
    """Find quantiles of columns on the engine.

    Parameters
    ----------
    dataset : Dataset
    engine : Engine
    progress : Progress
    wanted : mapping from str to sequence of float
        Shares in the range [0, 1] by column of numbers.
    on_invalid : {'fail', 'drop'}
        What to do where values are NaN or null. Infinite values have their place.
    task_bytes : int
        Compressed bytes a task.

    Returns
    -------
    tuple of ColumnQuantiles
        In the order of `wanted`.
    """
    searches = _begin(dataset, wanted)
    tasks = group_tasks(dataset.present(), task_bytes)
    invalid: dict[str, _Invalid] = {name: _Invalid() for name in searches}
    number = 0
    while passes := {name: s.next for name, s in searches.items() if s.next is not None}:
        number += 1
        counts = {name: np.zeros(p.shape, np.int64) for name, p in passes.items()}
        with progress.step(f"quantiles, pass {number}", dataset.rows) as step:
            for position, found in engine.map(count_pass, tasks, passes, dataset.schema):
                for name, (packed, bad) in found.items():
                    counts[name] += packed.unpack()
                    invalid[name] = invalid[name].plus(bad)
                step.advance(tasks[position].rows)
        for name, bad in invalid.items() if number == 1 else ():
            settle_invalid("NaN or null", [name], bad.rows, bad.ids, on_invalid, progress)
        for name in passes:
            searches[name].narrow(counts[name])
    return tuple(
        _result(dataset, name, searches[name], shares, invalid[name].rows)
        for name, shares in wanted.items()
    )


def _begin(dataset: Dataset, wanted: Mapping[str, Sequence[float]]) -> dict[str, RankSearch]:
    """Check what is wanted before anything is read."""
    dataset.check_columns(wanted)
    searches = {}
    for name, shares in wanted.items():
        type_ = dataset.schema.field(name).type
        known = numpy_type(type_)
        if known is None or known[1]:
            raise ColumnTypeError(f"Column '{name}' is {type_}: quantiles need one number a row.")
        if not 1 <= len(shares) <= _MOST:
            raise ParameterError(
                f"One scan takes 1 to {_MOST} quantiles of a column. Got {len(shares)} of "
                f"'{name}' instead."
            )
        searches[name] = RankSearch(known[0], _ranks(tuple(shares)))
    return searches


def _ranks(shares: tuple[float, ...]) -> Callable[[int], list[int]]:
    for share in shares:
        quantile_rank(share, 1)  # refused before anything is read
    return lambda n: [quantile_rank(share, n) for share in shares] if n else []


def _result(
    dataset: Dataset, name: str, search: RankSearch, shares: Sequence[float], invalid: int
) -> ColumnQuantiles:
    type_ = str(dataset.schema.field(name).type)
    quantiles = tuple(Quantile(share) for share in shares)
    if search.found:
        quantiles = tuple(
            Quantile(share, f.rank, f.value) for share, f in zip(shares, search.found, strict=True)
        )
    return ColumnQuantiles(name, type_, search.size, invalid, quantiles)


# --- what a task does -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Packed:
    """Counts on their way from a task."""

    data: bytes
    dtype: str
    shape: tuple[int, int]

    @classmethod
    def pack(cls, counts: I64) -> Packed:
        narrow = counts.astype(np.min_scalar_type(int(counts.max())))
        data = pa.compress(narrow.tobytes(), codec="zstd", asbytes=True)
        return cls(data, narrow.dtype.str, counts.shape)

    def unpack(self) -> I64:
        dtype = np.dtype(self.dtype)
        size = math.prod(self.shape) * dtype.itemsize
        data = pa.decompress(self.data, size, codec="zstd", asbytes=True)
        return np.frombuffer(data, dtype).reshape(self.shape).astype(np.int64)


@dataclass(frozen=True)
class _Invalid:
    """Rows whose value is NaN or null: how many, and the smallest of their ids."""

    rows: int = 0
    ids: tuple[int, ...] = ()

    def plus(self, other: _Invalid) -> _Invalid:
        ids = tuple(heapq.nsmallest(_SHOWN, self.ids + other.ids))
        return _Invalid(self.rows + other.rows, ids)


def count_pass(
    task: ScanTask, passes: dict[str, Pass], schema: pa.Schema
) -> dict[str, tuple[Packed, _Invalid]]:
    """Count a task's columns; runs on workers."""
    compiled_kernels(task.rows)  # loaded here where they pay, they count small batches too
    counters = {name: _Counter(name, pass_) for name, pass_ in passes.items()}
    for ref in task.refs:
        for part in scan_fragment(ref, list(passes), schema):
            for counter in counters.values():
                counter.add(part)
    return {name: counter.finish() for name, counter in counters.items()}


class _Counter:
    """One pass over a column."""

    def __init__(self, name: str, pass_: Pass) -> None:
        self._name, self._pass = name, pass_
        self._counts = np.zeros(pass_.shape, np.int64)
        self._invalid = _Invalid()

    def add(self, part: ScanPart) -> None:
        array = part.batch.column(self._name)
        values = as_numpy(array.drop_null() if array.null_count else array, self._name)
        before = self._pass.nan(self._counts)
        self._pass.count(values, into=self._counts)
        if not self._pass.known and (array.null_count or self._pass.nan(self._counts) > before):
            bad = _invalid_rows(array, values, part.first_row_id)
            self._invalid = self._invalid.plus(bad)

    def finish(self) -> tuple[Packed, _Invalid]:
        return Packed.pack(self._counts), self._invalid


def _invalid_rows(array: pa.Array, values: npt.NDArray[Any], first_row_id: int) -> _Invalid:
    """Find the nulls of an array, and the NaN among its other values."""
    bad = ~as_numpy(array.is_valid())
    bad[np.flatnonzero(~bad)[np.isnan(values)]] = True
    places = np.flatnonzero(bad) + first_row_id
    return _Invalid(len(places), tuple(places[:_SHOWN].tolist()))
