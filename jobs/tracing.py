"""Tracing: which rows a step holds, and in which steps a row is.

A step is looked up by the jump index. A row is looked for in every block, once, whatever the number
of rows asked for; its key is looked for in the dataset first.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ..dataplane.dataset import Dataset, DatasetLike
from ..dataplane.epochs import Epoch
from ..dataplane.errors import DatasetChangedError, JobSpecError, SelectionError
from ..dataplane.manifest import Manifest
from ..dataplane.plan import BatchPlan, Ragged
from ..dataplane.rowset import RowSet
from ..dataplane.series import Plan, Series, open_plan
from ..dataplane.snapshot import as_row_ids
from .engine import Engine
from .key_files import cast_keys
from .key_search import rows_with_keys
from .progress import LogProgress, Progress
from .row_values import RowValues, plain_value

__all__ = ["FoundRow", "Occurrence", "PlannedRow", "RowTrace", "StepTrace", "TracedBatch", "trace"]

U64 = npt.NDArray[np.uint64]

_ROWS_AT_MOST = 100_000  # with one key


@dataclass(frozen=True)
class TracedRow:
    """A row and where it lies.

    Attributes
    ----------
    row : int
        Row id.
    source, fragment : str
    offset : int
        In the fragment.
    columns : dict or None
        Decoded values, as JSON holds them; None where no dataset was given.
    """

    row: int
    source: str
    fragment: str
    offset: int
    columns: dict[str, Any] | None


@dataclass(frozen=True)
class PlannedRow(TracedRow):
    """A row of a micro-batch: where in it, its weight and its side values."""

    position: int
    weight: float
    side: dict[str, Any]


@dataclass(frozen=True)
class TracedBatch:
    """A micro-batch: the side values that it has as a whole, and its rows."""

    micro: int
    side: dict[str, Any]
    rows: tuple[PlannedRow, ...]


@dataclass(frozen=True)
class StepTrace:
    """What a step holds."""

    manifest_id: str
    epoch: int
    step: int
    micro_batches: tuple[TracedBatch, ...]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Occurrence:
    """One place of a row in a plan."""

    epoch: int
    step: int
    micro: int
    position: int
    weight: float


@dataclass(frozen=True)
class FoundRow(TracedRow):
    """A row, where it is, and the epochs in which it is not."""

    found: tuple[Occurrence, ...]
    absent: tuple[int, ...]


@dataclass(frozen=True)
class RowTrace:
    """Where rows are.

    Attributes
    ----------
    epochs : tuple of int
        Those that were searched.
    rows : tuple of FoundRow
        By row id; none where no row has the key.
    """

    epochs: tuple[int, ...]
    rows: tuple[FoundRow, ...]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def trace(
    path: str | os.PathLike[str] | Plan,
    data: DatasetLike | None = None,
    *,
    epoch: int | None = None,
    step: int | None = None,
    row: int | Sequence[int] | None = None,
    key: str | None = None,
    value: Any = None,
    columns: Sequence[str] | None = None,
    storage_options: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> StepTrace | RowTrace:
    """Say which rows a step holds, or in which steps a row is.

    Parameters
    ----------
    path : path, Manifest or Series
    data : path, URI, list or mapping, optional
        The dataset that was planned, to show the rows' columns. Only the fragments that hold the
        rows need to be there; for a key, those that hold planned rows.
    epoch : int, optional
        Of the step; or the only epoch to look for rows in.
    step : int, optional
        Show this step.
    row : int or sequence of int, optional
        Look for these row ids.
    key, value : str, any
        Look for the rows whose column `key` equals `value`; text is read as the column's type.
    columns : sequence of str, optional
        Columns to show; all when None.
    storage_options : mapping, optional
    progress : Progress, optional

    Returns
    -------
    StepTrace or RowTrace

    Examples
    --------
    >>> trace("plan/", "data/", epoch=0, step=17).micro_batches[0].rows[0].columns["text"]
    >>> trace("plan/", "data/", key="doc_id", value="doc-7").rows[0].found
    """
    if [step is not None, row is not None, key is not None].count(True) != 1:
        raise JobSpecError("Name one thing to trace: a step, a row, or a key and its value.")
    if data is None and (key is not None or columns is not None):
        what = "A key is looked for in" if key is not None else "Columns are read from"
        raise JobSpecError(f"{what} the dataset: name it, too.")
    plan = open_plan(path, storage_options=storage_options)
    values = RowValues(data, columns, storage_options)
    if step is not None:
        return _trace_step(plan, values, epoch, step)
    progress = progress or LogProgress()
    if key is not None:
        ids = _rows_with_key(plan, values, key, value, progress)
    else:
        ids = np.unique(as_row_ids(np.atleast_1d(np.asarray(row))))
    return _trace_rows(plan, values, ids, epoch, progress)


# --- a step ---------------------------------------------------------------------------------------


def _trace_step(plan: Plan, values: RowValues, epoch: int | None, step: int) -> StepTrace:
    if epoch is None and len(plan.epochs) > 1:
        held = ", ".join(map(str, plan.epochs))
        raise JobSpecError(f"Say of which epoch step {step} is; {plan.path} holds {held}.")
    number = plan.epochs[0] if epoch is None else epoch
    manifest = plan.manifest_for(number)
    batches = manifest.epoch(number).step(step)
    rows = values.describe(manifest, batches.rows)
    kinds = {c.name: c.kind for c in manifest.side_columns}
    traced, at = [], 0
    for k in range(len(batches)):
        one = batches.slice(k, k + 1)
        traced.append(_traced_batch(one, rows[at : at + len(one.rows)], kinds))
        at += len(one.rows)
    return StepTrace(manifest.manifest_id, number, step, tuple(traced))


def _traced_batch(
    one: BatchPlan, rows: list[dict[str, Any]], kinds: Mapping[str, str]
) -> TracedBatch:
    whole = {n: _side_value(v, 0) for n, v in one.side.items() if kinds[n] == "batch"}
    own = {n: v for n, v in one.side.items() if kinds[n] != "batch"}
    planned = [
        PlannedRow(
            **described,
            position=i,
            weight=1.0 if one.weights is None else float(one.weights[i]),
            side={n: _side_value(v, i) for n, v in own.items()},
        )
        for i, described in enumerate(rows)
    ]
    return TracedBatch(int(one.micro[0]), whole, tuple(planned))


def _side_value(value: Any, index: int) -> Any:
    if isinstance(value, Ragged):
        return plain_value(value.slice(index, index + 1).values)
    return plain_value(value[index])


# --- rows -----------------------------------------------------------------------------------------


def _members(plan: Plan) -> list[Manifest]:
    """Return the plan's manifests, newest first."""
    return plan.members[::-1] if isinstance(plan, Series) else [plan]


def _trace_rows(
    plan: Plan, values: RowValues, ids: U64, epoch: int | None, progress: Progress
) -> RowTrace:
    epochs = plan.epochs if epoch is None else (epoch,)
    records = {number: plan.manifest_for(number).records[number] for number in epochs}
    described = _described(plan, values, ids)
    found: dict[int, list[Occurrence]] = {int(i): [] for i in ids}
    with progress.step("searching", sum(r.samples for r in records.values())) as told:
        for number in epochs:
            for row, place in _occurrences(plan.epoch(number), ids):
                found[row].append(place)
            told.advance(records[number].samples)
    rows = []
    for one in described:
        places_ = tuple(found[one["row"]])
        absent = tuple(e for e in epochs if e not in {p.epoch for p in places_})
        rows.append(FoundRow(**one, found=places_, absent=absent))
    return RowTrace(tuple(epochs), tuple(rows))


def _occurrences(epoch: Epoch, ids: U64) -> Iterator[tuple[int, Occurrence]]:
    for row, index, position in zip(*(c.tolist() for c in epoch.find_rows(ids)), strict=True):
        batch = epoch[index]
        weight = 1.0 if batch.weights is None else float(batch.weights[position])
        yield row, Occurrence(epoch.record.epoch, batch.step, batch.micro, position, weight)


def _described(plan: Plan, values: RowValues, ids: U64) -> list[dict[str, Any]]:
    """Describe rows by the newest manifest that knows them."""
    left = ids
    described: dict[int, dict[str, Any]] = {}
    members = _members(plan)
    for manifest in members:
        known = RowSet(manifest.snapshot).contains(left)
        described.update({d["row"]: d for d in values.describe(manifest, left[known])})
        left = left[~known]
    if len(left):
        members[0].snapshot.locate(left)  # says which row is in no fragment
    return [described[int(i)] for i in ids]


def _rows_with_key(plan: Plan, values: RowValues, key: str, value: Any, progress: Progress) -> U64:
    found = [np.zeros(0, np.uint64)]
    searched: set[Any] = set()
    for manifest in _members(plan):
        dataset, fragments = _searchable(manifest, values, progress)
        new = [i for i in fragments if manifest.snapshot.fragments[i] not in searched]
        searched.update(manifest.snapshot.fragments[i] for i in new)
        dataset.check_columns([key], fragments=[])
        keys = cast_keys(pa.array([value]), f"The value {value!r}", key, dataset)
        with Engine(workers=0) as engine, tempfile.TemporaryDirectory() as folder:
            rows, _ = rows_with_keys(
                dataset, new, key, keys, engine=engine, progress=progress, folder=Path(folder)
            )
        found.append(rows)
    ids = np.unique(np.concatenate(found))
    if len(ids) > _ROWS_AT_MOST:
        raise SelectionError(
            f"{len(ids):,} rows have '{key}' = {value!r}, more than the {_ROWS_AT_MOST:,} that are "
            "traced at once. Name a column with fewer rows a value, or single rows."
        )
    return ids


def _searchable(
    manifest: Manifest, values: RowValues, progress: Progress
) -> tuple[Dataset, Sequence[int]]:
    """Return the dataset and the fragments to search: all, or where some changed the planned."""
    snapshot, planned = manifest.snapshot, manifest.planned_fragments()
    everything = [i for i, f in enumerate(snapshot.fragments) if f.rows]
    try:
        return values.open(manifest, everything), everything
    except DatasetChangedError:
        if planned == everything:
            raise
        dataset = values.open(manifest, planned)
    progress.warn(
        f"Of the {len(everything)} fragments that {manifest.path} knows only the {len(planned)} "
        "that hold planned rows are searched: others are gone or changed."
    )
    return dataset, planned
