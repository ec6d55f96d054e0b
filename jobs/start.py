"""What a job starts from: its dataset, the rows that may take part, its target."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..dataplane.dataset import Dataset, open_dataset
from ..dataplane.errors import JobSpecError, SelectionError
from ..dataplane.manifest_header import HEADER
from ..dataplane.manifest_writer import refuse_foreign_target
from ..dataplane.rowset import RowSet
from ..dataplane.series import Series
from ..dataplane.snapshot import Snapshot
from ..dataplane.storage import locate
from .spec import JobSpec
from .stages import Stage

__all__ = ["check_job", "load_snapshot", "open_job", "refuse_inside", "rows_of", "target_of"]


def open_job(spec: JobSpec) -> tuple[Dataset, int | None]:
    """Return the dataset, and the first row id that counts as added where only those are wanted."""
    since: Snapshot | None = None
    base: Snapshot | None = None  # what rows were added to
    if spec.since is not None:
        since = base = load_snapshot(spec.since)
    elif spec.series and spec.snapshot is None:
        series = Series(spec.out)
        since = series.members[-1].snapshot if series.ranges else None
        # Not the member that is planned now, where it is there already and the job runs again.
        before = [r for r in series.ranges if r[1] <= spec.epochs[0]]
        base = series.member(*before[-1]).snapshot if before else None
    dataset = open_dataset(
        spec.dataset,
        snapshot=None if spec.snapshot is None else load_snapshot(spec.snapshot),
        since=since,
        storage_options=spec.storage_options,
    )
    if not spec.added_only:
        return dataset, None
    return dataset, 0 if base is None else base.next_row_id


def load_snapshot(path: str) -> Snapshot:
    """Read a snapshot file, or the snapshot of a manifest or of a series' last member."""
    folder = Path(path)
    if folder.is_dir() and not (folder / HEADER).exists():
        series = Series(folder)
        if series.ranges:
            return series.members[-1].snapshot
    return Snapshot.load(folder)


def rows_of(dataset: Dataset, first_added: int | None) -> RowSet:
    """Return all rows, or those added since a row id."""
    rows = RowSet(dataset.snapshot)
    if first_added is None:
        return rows
    added = rows.since(first_added)
    if not len(added):
        raise SelectionError("No row was added since that snapshot; there is nothing to plan.")
    return added


def check_job(spec: JobSpec, dataset: Dataset, stages: Sequence[Stage]) -> None:
    """Refuse what can be refused before anything is read."""
    if dataset.rows == 0:
        raise SelectionError(
            f"The dataset holds {len(dataset.snapshot.fragments)} files and no rows; there is "
            "nothing to plan."
        )
    if spec.batch_size > dataset.rows:
        raise SelectionError(
            f"batch_size = {spec.batch_size} is larger than the dataset's {dataset.rows} rows; "
            f"choose at most {dataset.rows}."
        )
    dataset.check_columns(dict.fromkeys(c for s in stages for c in s.reads()))


def target_of(spec: JobSpec) -> tuple[Path, str | None]:
    """Return (directory to make, id of the manifest that it continues)."""
    if "://" in spec.out:
        raise JobSpecError(
            f"'{spec.out}': a manifest is written to a local directory; copy it from there."
        )
    refuse_inside(spec.out, spec.dataset)
    if spec.series:
        return Series(spec.out).next_member(*spec.epochs)
    refuse_foreign_target(Path(spec.out))
    return Path(spec.out), None


def refuse_inside(out: str | os.PathLike[str], data: Any) -> None:
    """Refuse a target below a directory of a dataset: its parts would be listed as data."""
    sources = data.values() if isinstance(data, Mapping) else [data]
    for source in sources:
        if not isinstance(source, str | os.PathLike):
            continue
        folder = locate(source)
        target = Path(out).resolve()
        if folder.is_local and target.is_relative_to(Path(folder.path).resolve()):
            raise JobSpecError(
                f"{os.fspath(out)} lies inside the dataset {os.fspath(source)}, where the plan's "
                "own files would be read as data; choose a target outside of it."
            )
