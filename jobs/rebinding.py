"""Rebinding a manifest: the same plan on files that were compacted, split or sorted anew.

Rows are found again by a unique key column: old row id → key → new row id. Steps, micro-batches,
weights and side values stay; only the row ids are others. Augmentation that is keyed by
``batch.seeds`` draws anew, since seeds are functions of the row ids.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np

from ..dataplane.dataset import Dataset, DatasetLike, open_dataset
from ..dataplane.errors import JobSpecError, ParameterError, SelectionError
from ..dataplane.lineage import change_stage
from ..dataplane.manifest import Manifest
from ..dataplane.plan import BatchPlan
from ..dataplane.remap import RowMapping, remap_rows
from ..dataplane.snapshot import Snapshot
from ..dataplane.storage import locate
from ..dataplane.targets import Target, target_at
from .engine import Engine, parse_bytes
from .key_join import map_rows_by_key
from .progress import LogProgress, Progress
from .rewriting import Mask, Survey, child_of, open_parent, planned_rows, rewrite, survey
from .signal_files import RemappedSignal, check_signal, remapped_signal
from .signal_stores import remapped_store
from .start import refuse_inside

__all__ = ["Missing", "rebind"]

Missing = Literal["fail", "drop"]

_EXAMPLES = 3


def rebind(
    path: str | os.PathLike[str] | Manifest,
    old: DatasetLike,
    new: DatasetLike,
    *,
    key: str,
    out: str | os.PathLike[str],
    missing: Missing = "fail",
    signal: str | os.PathLike[str] | None = None,
    signal_out: str | os.PathLike[str] | None = None,
    scheduler: str | None = None,
    workers: int | None = None,
    memory: int | str | None = None,
    storage_options: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> Manifest:
    """Write a child of a manifest that addresses the same rows in other files.

    Parameters
    ----------
    path : path or Manifest
        Of a series, name the member; the child is a plain manifest.
    old, new : path, URI, list or mapping
        The dataset that was planned, and the one that the child is for. Files that are in both
        keep their row ids.
    key : str
        A column whose values are unique on either side, and the same in both.
    out : path or URI
        Manifest to make. The same child already there is success.
    missing : {'fail', 'drop'}
        What to do with planned rows whose key the new dataset does not hold.
    signal, signal_out : path, optional
        A signal store, or an Arrow or Parquet file with a column ``row``, and where to write it
        with the new row ids.
    scheduler, workers, memory
        Where the keys are read; see `engine.Engine`.
    storage_options : mapping, optional
        Options of the filesystem, for URIs.
    progress : Progress, optional

    Returns
    -------
    Manifest
        Counts stand in ``provenance["reports"]["rebind"]``.

    Raises
    ------
    SelectionError
        Where a key is there twice, or a planned row is gone and `missing` is ``'fail'``.
    JobSpecError, DatasetChangedError, ColumnTypeError

    Examples
    --------
    >>> rebind("plan/", "data/", "compacted/", key="doc_id", out="plan2/")
    """
    progress = progress or LogProgress()
    if missing not in get_args(Missing):
        raise ParameterError(
            f"The 'missing' parameter must be one of 'fail', 'drop'. Got {missing!r} instead."
        )
    if (signal is None) != (signal_out is None):
        raise JobSpecError("'signal' and 'signal_out' go together: what to carry over, and where.")
    if signal is not None and signal_out is not None:
        check_signal(signal, signal_out)
    refuse_inside(out, old, storage_options)
    refuse_inside(out, new, storage_options)
    parent, target = open_parent(path, storage_options), target_at(out, storage_options)
    before = parent.open_dataset(old, storage_options=storage_options)
    after = open_dataset(new, since=parent.snapshot, storage_options=storage_options)
    with (
        target.scratch() as folder,
        Engine(
            scheduler=scheduler,
            workers=workers,
            memory=None if memory is None else parse_bytes(memory),
            folder=folder,
            note=progress.note,
            warn=progress.warn,
        ) as engine,
    ):
        # A signal may hold rows that were not planned.
        wanted = parent.planned_fragments() if signal is None else range(len(before.refs))
        mapping = map_rows_by_key(
            before,
            after,
            key,
            fragments=wanted,
            engine=engine,
            progress=progress,
            folder=folder,
        )
        job = _Rebinding(parent, before, after, key, mapping, progress)
        found = job.survey(missing)
        with _carried(signal, signal_out, mapping, after.snapshot) as carried:
            return job.write(target, found, carried)


@contextmanager
def _carried(
    signal: str | os.PathLike[str] | None,
    signal_out: str | os.PathLike[str] | None,
    mapping: RowMapping,
    snapshot: Snapshot,
) -> Iterator[RemappedSignal | None]:
    if signal is None or signal_out is None:
        yield None
        return
    if locate(signal).is_dir():
        with remapped_store(os.fspath(signal), os.fspath(signal_out), mapping, snapshot) as carried:
            yield carried
        return
    with remapped_signal(signal, signal_out, mapping) as carried:
        yield carried


@dataclass(frozen=True)
class _Rebinding:
    """A manifest, its old and new dataset, and the way from one to the other."""

    parent: Manifest
    before: Dataset
    after: Dataset
    key: str
    mapping: RowMapping
    progress: Progress

    def survey(self, missing: Missing) -> Survey:
        """Count the planned rows that are gone; refuse them, or say how many are left out."""
        epochs = self.parent.epochs
        same = self.after.snapshot == self.parent.snapshot

        def goes(block: BatchPlan) -> Mask:
            nonlocal same
            moved, there = self.moved(block)
            # Files sorted anew in place may keep their size and footer: their ids tell.
            same = same and np.array_equal(moved.rows, block.rows)
            return ~there

        with self.progress.step("finding rows", planned_rows(self.parent, epochs)) as step:
            found = survey(self.parent, epochs, goes, step.advance)
        if same:
            raise JobSpecError(
                f"All rows of {self.parent.path} are where they were planned; there is nothing to "
                "rebind."
            )
        if not found.left_out:
            return found
        found.refuse_empty(self.parent)
        gone = len(found.rows)
        if missing == "fail":
            raise SelectionError(
                f"{gone:,} planned rows are not in the new dataset: it holds no row with their "
                f"'{self.key}', such as {self._examples(found)}. Put them back, or leave them out "
                "with --missing drop."
            )
        self.progress.warn(f"rebind: {gone:,} planned rows are gone and left out.")
        return found

    def _selected(self, number: int, found: Survey) -> int:
        """Return how many rows of the new dataset were selected, in a micro-batch or not."""
        record, left = self.parent.records[number], found.left_out.get(number)
        planned = record.distinct_rows - (0 if left is None else left.distinct_rows)
        return min(planned + record.dropped_rows, self.after.rows)

    def _examples(self, found: Survey) -> str:
        rows = found.rows.select(np.arange(min(_EXAMPLES, len(found.rows))))
        values = self.before.take(rows, [self.key])[self.key].to_pylist()
        return ", ".join(f"{v!r} (row {r})" for v, r in zip(values, rows, strict=True))

    def moved(self, block: BatchPlan) -> tuple[BatchPlan, Mask]:
        """Return a block with new row ids, and which of its rows are still there."""
        rows, there = remap_rows(block.rows, self.mapping)
        return replace(block, rows=rows), there

    def write(self, target: Target, found: Survey, carried: RemappedSignal | None) -> Manifest:
        parent = self.parent
        stage = change_stage("rebind", "key", {"key": self.key}, parent, found.first_change)
        report: dict[str, Any] = {"rows_gone": len(found.rows)}
        if carried is not None:
            report |= {"signal_rows": carried.rows, "signal_rows_gone": carried.gone}
        with (
            self.progress.step("writing", planned_rows(parent, parent.epochs)) as step,
            child_of(
                parent,
                target,
                stages=[stage],
                rewritten=parent.epochs,
                snapshot=self.after.snapshot,
            ) as writer,
        ):
            for number in parent.epochs:
                rewrite(
                    writer,
                    parent,
                    number,
                    self.moved,
                    step.advance,
                    eligible_rows=self._selected(number, found),
                )
            return writer.commit(reports={**parent.provenance["reports"], "rebind": report})
