"""What a job starts from: its dataset, the rows that may take part, its target."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..dataplane.dataset import Dataset, open_dataset
from ..dataplane.errors import JobSpecError, SelectionError, StorageError
from ..dataplane.manifest_header import HEADER
from ..dataplane.rowset import RowSet
from ..dataplane.series import Series
from ..dataplane.snapshot import Snapshot
from ..dataplane.snapshot_bases import check_related, newest_base
from ..dataplane.storage import locate
from ..dataplane.targets import Target, target_at
from .losses import Signal
from .spec import JobSpec
from .stages import Stage

__all__ = [
    "check_job",
    "load_snapshot",
    "open_job",
    "refuse_inside",
    "rows_of",
    "space_for",
    "splits_of",
    "target_of",
]


def open_job(spec: JobSpec, signal: Signal | None = None) -> tuple[Dataset, int | None]:
    """Return the dataset, and the first row id that counts as added where only those are wanted.

    Raises
    ------
    DatasetChangedError
        Where the signal belongs to another dataset, or numbers its rows differently.
    """
    since: Snapshot | None = None
    base: Snapshot | None = None  # what rows were added to
    if spec.since is not None:
        since = base = load_snapshot(spec.since, spec.storage_options)
    elif spec.series and spec.snapshot is None:
        series = Series(spec.out, storage_options=spec.storage_options)
        since = series.members[-1].snapshot if series.ranges else None
        if signal is not None:
            mine = [] if since is None else [(f"the series {spec.out}", since)]
            since = newest_base([*mine, *signal.bases])
        # Not the member that is planned now, where it is there already and the job runs again.
        before = [r for r in series.ranges if r[1] <= spec.epochs[0]]
        base = series.member(*before[-1]).snapshot if before else None
    dataset = open_dataset(
        spec.dataset,
        snapshot=_given_snapshot(spec),
        since=since,
        storage_options=spec.storage_options,
    )
    if signal is not None:
        for name, held in signal.bases:
            newest_base([(name, held), (f"{spec.dataset}", dataset.snapshot)])
            check_related(f"The signal store {signal.location}", held, dataset.snapshot)
    if not spec.added_only:
        return dataset, None
    return dataset, 0 if base is None else base.next_row_id


def splits_of(spec: JobSpec, dataset: Dataset) -> str | None:
    """Say that a folder's splits are all planned, where it was named as a whole."""
    sources = sorted({f.source for f in dataset.snapshot.fragments})
    if isinstance(spec.dataset, Mapping) or len(sources) < 2 or spec.snapshot or spec.since:
        return None
    one = next((name for name in sources if name.startswith("train")), sources[0])
    return (
        f"{spec.dataset} holds the splits {', '.join(sources)}, and all of them are planned. Name "
        f"what to train on to plan it alone, such as {one}=FILES."
    )


def _given_snapshot(spec: JobSpec) -> Snapshot | None:
    if spec.snapshot is None:
        return None
    return load_snapshot(spec.snapshot, spec.storage_options)


def load_snapshot(path: str, storage_options: Mapping[str, Any] | None = None) -> Snapshot:
    """Read a snapshot file, or the snapshot of a manifest or of a series' last member."""
    folder = locate(path, storage_options)
    if folder.is_dir() and not folder.join(HEADER).exists():
        series = Series(path, storage_options=storage_options)
        if series.ranges:
            return series.members[-1].snapshot
    return Snapshot.load(path, storage_options=storage_options)


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


def target_of(spec: JobSpec) -> tuple[Target, str | None]:
    """Return (where to write, id of the manifest that it continues); refuse what cannot be."""
    refuse_inside(spec.out, spec.dataset, spec.storage_options)
    out: Path | str = spec.out
    parent: str | None = None
    if spec.series:
        series = Series(spec.out, storage_options=spec.storage_options)
        out, parent = series.next_member(*spec.epochs)
    target = target_at(out, spec.storage_options)
    target.prepare()
    return target, parent


@contextmanager
def space_for(target: Target, bytes_needed: int) -> Iterator[None]:
    """Refuse to begin where a disk has no room for a job; say how much it took where it fills up.

    Workers write there too, and their errors come without the system's number.
    """
    target.check_space(bytes_needed)
    try:
        yield
    except StorageError as error:
        if not any(os.strerror(code) in str(error) for code in (errno.ENOSPC, errno.EDQUOT)):
            raise
        status = os.statvfs(target.disk)
        raise StorageError(
            f"{error} The job needs about {bytes_needed:,} bytes in {target.disk}; "
            f"{status.f_bavail * status.f_frsize:,} are free."
        ) from error


def refuse_inside(
    out: str | os.PathLike[str], data: Any, storage_options: Mapping[str, Any] | None = None
) -> None:
    """Refuse a target below a directory of a dataset: its parts would be listed as data."""
    sources = data.values() if isinstance(data, Mapping) else [data]
    target = locate(out, storage_options)
    for source in sources:
        if not isinstance(source, str | os.PathLike):
            continue
        if locate(source, storage_options).contains(target):
            raise JobSpecError(
                f"{os.fspath(out)} lies inside the dataset {os.fspath(source)}, where the plan's "
                "own files would be read as data; choose a target outside of it."
            )
