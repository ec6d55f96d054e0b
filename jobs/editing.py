"""Editing a manifest: a child without some steps, or without some rows.

Steps keep their numbers, so that a run can go on from any state before the first change. Epochs
that do not change are taken over byte for byte.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..dataplane.bitmap import Bitmap
from ..dataplane.canonical import file_sha256
from ..dataplane.columns import as_numpy
from ..dataplane.dataset import DatasetLike
from ..dataplane.deep_hashes import find_deep_hashes
from ..dataplane.errors import JobSpecError, ParameterError
from ..dataplane.lineage import change_stage
from ..dataplane.manifest import Manifest
from ..dataplane.plan import BatchPlan
from ..dataplane.plan_changes import rows_in_steps
from ..dataplane.rowset import RowSet
from ..dataplane.targets import Target, target_at
from .engine import Engine, parse_bytes
from .key_files import keys_in_file
from .key_search import rows_with_keys
from .progress import LogProgress, Progress
from .rewriting import Mask, Survey, child_of, open_parent, planned_rows, rewrite, survey
from .start import refuse_inside

__all__ = ["edit"]

U64 = npt.NDArray[np.uint64]


def edit(
    path: str | os.PathLike[str] | Manifest,
    *,
    out: str | os.PathLike[str],
    epoch: int | None = None,
    skip_steps: str | tuple[int, int] | None = None,
    drop: str | os.PathLike[str] | None = None,
    key: str | None = None,
    data: DatasetLike | None = None,
    scheduler: str | None = None,
    workers: int | None = None,
    memory: int | str | None = None,
    storage_options: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> Manifest:
    """Write a child of a manifest that leaves steps or rows out.

    Parameters
    ----------
    path : path, URI or Manifest
        Of a series, name the member; the child is a plain manifest.
    out : path or URI
        Manifest to make. The same child already there is success.
    epoch : int, optional
        The epoch to change; when None, `drop` changes all.
    skip_steps : "A:B" or (int, int), optional
        Steps to leave out, half-open; needs `epoch`.
    drop : path, optional
        File of the rows to leave out: row ids, or values of `key` (see `keys`).
    key : str, optional
        Key column; needs `data`.
    data : path, URI, list or mapping, optional
        The dataset that was planned.
    scheduler, workers, memory
        Where keys are looked for; see `engine.Engine`.
    storage_options : mapping, optional
        Options of the filesystem, for URIs.
    progress : Progress, optional

    Returns
    -------
    Manifest
        What was left out stands in ``provenance["reports"]["edit"]``.

    Raises
    ------
    JobSpecError
        Where the edit is none, or changes nothing.
    SelectionError
        Where nothing would be left of an epoch.

    Examples
    --------
    >>> edit("plan/", out="calm/", epoch=0, skip_steps="300:320")
    >>> edit("plan/", out="clean/", drop="takedown.csv", key="url", data="data/")
    """
    progress = progress or LogProgress()
    if skip_steps is None and drop is None:
        raise JobSpecError("Say what to leave out: steps (skip_steps) or a file of rows (drop).")
    if skip_steps is not None and epoch is None:
        raise JobSpecError("Step numbers are an epoch's: say with 'epoch' which one to change.")
    if key is not None and (drop is None or data is None):
        raise JobSpecError("'key' says what 'drop' goes by, and its values are read from 'data'.")
    refuse_inside(out, data, storage_options)
    parent, target = open_parent(path, storage_options), target_at(out, storage_options)
    epochs = parent.epochs if epoch is None else (parent.epoch(epoch).record.epoch,)
    steps = None if skip_steps is None else _parse_steps(skip_steps)
    named = None
    if drop is not None:
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
            search = _Search(parent, folder, engine, progress, data, storage_options)
            named = search.rows_named(os.fspath(drop), key)
    change = _Edit(epochs, steps, named)
    with progress.step("looking for what goes", planned_rows(parent, epochs)) as step:
        found = survey(parent, epochs, change.goes, step.advance)
    report = change.report(found, progress, parent)
    if not found.left_out:
        raise JobSpecError(f"The edit changes nothing: {change.none_of(parent)}.")
    found.refuse_empty(parent)
    return _write(parent, target, change, found, report, progress)


def _write(
    parent: Manifest,
    target: Target,
    change: _Edit,
    found: Survey,
    report: Mapping[str, Any],
    progress: Progress,
) -> Manifest:
    rewritten = list(found.left_out)
    with (
        progress.step("writing", planned_rows(parent, rewritten)) as step,
        child_of(
            parent,
            target,
            stages=change.stages(parent, found),
            rewritten=rewritten,
            deep_hashes=find_deep_hashes(parent.location),
        ) as writer,
    ):
        for number in parent.epochs:
            if number in found.left_out:
                record = parent.records[number]
                selected = record.distinct_rows + record.dropped_rows
                rewrite(
                    writer, parent, number, change.applied, step.advance, eligible_rows=selected
                )
            else:
                writer.take_over(parent, number)
        return writer.commit(reports={**parent.provenance["reports"], "edit": report})


def _parse_steps(value: str | tuple[int, int]) -> tuple[int, int]:
    found: Sequence[Any] = value.split(":") if isinstance(value, str) else value
    try:
        first, stop = (int(v) for v in found)
    except (ValueError, TypeError):
        first, stop = 0, 0
    if not 0 <= first < stop:
        raise ParameterError(
            "The 'skip_steps' parameter must be a range A:B of steps, half-open, such as 300:320. "
            f"Got {value!r} instead."
        )
    return first, stop


# --- what goes ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Named:
    """The rows that a file names.

    Attributes
    ----------
    file, sha256 : str
    key : str or None
    count : int
        Different keys in the file, or row ids where it holds those.
    rows : uint64, shape (n,)
        Rows of the snapshot that have them.
    which : int64, shape (n,)
        Index of each row's key.
    bits : Bitmap
        The rows.
    """

    file: str
    sha256: str
    key: str | None
    count: int
    rows: U64
    which: npt.NDArray[np.int64]
    bits: Bitmap

    @property
    def what(self) -> str:
        return "row ids" if self.key is None else f"keys of '{self.key}'"


@dataclass(frozen=True)
class _Search:
    """Looks for the rows that a file names."""

    parent: Manifest
    folder: Path
    engine: Engine
    progress: Progress
    data: DatasetLike | None
    storage_options: Mapping[str, Any] | None

    def rows_named(self, file: str, key: str | None) -> _Named:
        snapshot = self.parent.snapshot
        if key is None:
            ids = np.unique(as_numpy(keys_in_file(file, None, None)))
            which = np.flatnonzero(RowSet(snapshot).contains(ids))
            count, rows = len(ids), ids[which]
        else:
            count, rows, which = self._by_key(file, key)
        bits = Bitmap.of(snapshot.next_row_id, [rows])
        with open(file, "rb") as handle:
            sha256 = file_sha256(handle)
        return _Named(file, sha256, key, count, rows, which, bits)

    def _by_key(self, file: str, key: str) -> tuple[int, U64, npt.NDArray[np.int64]]:
        assert self.data is not None  # for the type checker; `edit` saw to it
        planned = self.parent.planned_fragments()
        dataset = self.parent.open_dataset(self.data, storage_options=self.storage_options)
        dataset.check_columns([key], fragments=planned)
        keys = keys_in_file(file, key, dataset)
        rows, which = rows_with_keys(
            dataset,
            planned,
            key,
            keys,
            engine=self.engine,
            progress=self.progress,
            folder=self.folder,
        )
        return len(keys), rows, which


@dataclass(frozen=True)
class _Edit:
    """Steps and rows that go from some epochs."""

    epochs: tuple[int, ...]
    steps: tuple[int, int] | None
    named: _Named | None

    def goes(self, block: BatchPlan) -> Mask:
        """Return which rows of a block go."""
        gone = np.zeros(len(block.rows), dtype=bool)
        if self.steps is not None:
            gone |= rows_in_steps(block, *self.steps)
        if self.named is not None:
            gone |= self.named.bits.contains(block.rows)
        return gone

    def applied(self, block: BatchPlan) -> tuple[BatchPlan, Mask]:
        return block, ~self.goes(block)

    def report(self, found: Survey, progress: Progress, parent: Manifest) -> dict[str, Any]:
        """Return what the edit tells of itself; warn of rows that are in no step."""
        report: dict[str, Any] = {
            "epochs": [{"epoch": e, **vars(left)} for e, left in found.left_out.items()]
        }
        if self.named is None:
            return report
        seen = self.named.which[found.rows.contains(self.named.rows)]
        missing = self.named.count - len(np.unique(seen))
        if missing:
            progress.warn(
                f"edit: {missing:,} of {self.named.count:,} {self.named.what} in "
                f"{self.named.file} are in no step of {self._where(parent)}."
            )
        return {**report, "keys": self.named.count, "keys_in_no_step": missing}

    def _where(self, parent: Manifest) -> str:
        if len(self.epochs) == len(parent.epochs):
            return str(parent.path)
        return f"epoch {self.epochs[0]} of {parent.path}"

    def none_of(self, parent: Manifest) -> str:
        """Say that nothing of what was asked to go is there."""
        asked = []
        if self.steps is not None:
            asked.append(f"none of the steps {self.steps[0]}:{self.steps[1]}")
        if self.named is not None:
            asked.append(f"none of the {self.named.count:,} {self.named.what}")
        return f"{self._where(parent)} holds {' and '.join(asked)}"

    def stages(self, parent: Manifest, found: Survey) -> list[dict[str, Any]]:
        """Return what the child's identity records."""
        stages, first = [], found.first_change
        if self.steps is not None:
            skipped = {"epoch": self.epochs[0], "first": self.steps[0], "stop": self.steps[1]}
            stages.append(change_stage("edit", "skip_steps", skipped, parent, first))
        if self.named is not None:
            dropped = {
                "epoch": None if len(self.epochs) == len(parent.epochs) else self.epochs[0],
                "file_sha256": self.named.sha256,
                "key": self.named.key,
            }
            stages.append(change_stage("edit", "drop", dropped, parent, first))
        return stages
