"""Writing a manifest: a stream of batch plans in, one committed directory out.

    >>> with ManifestWriter("plan/", snapshot=dataset.snapshot, seed=7) as writer:
    ...     with writer.epoch(0):
    ...         writer.append(plan)            # as many times as there are chunks
    ...     manifest = writer.commit()

Memory does not grow with the length of the plan: blocks go to disk as they fill; one bit a row of
the dataset counts the coverage. What is not committed leaves nothing behind.
"""

from __future__ import annotations

import hashlib
import math
import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from .canonical import digest
from .commit import publish, staging, write_synced
from .coverage import Coverage
from .errors import ManifestConflictError, SelectionError, StorageError
from .manifest import (
    FORMAT,
    HEADER,
    SCHEMA_VERSION,
    WEIGHT_ONE,
    EpochRecord,
    Manifest,
    header_bytes,
    records_to_json,
)
from .manifest_part import PartRecord, PartWriter, block_digest, part_schema
from .plan import BatchPlan, SideColumn, Unit, WeightSemantics
from .snapshot import Snapshot, write_deep_hashes
from .storage import storing

__all__ = ["ManifestWriter"]

BLOCK_MICRO_BATCHES = 4096
BLOCK_ROWS = 1 << 20
PART_ROWS = 4 << 20


class ManifestWriter:
    """Writes one manifest.

    Parameters
    ----------
    target : path
        Directory to make.
    snapshot : Snapshot
        The dataset's fragment table; every planned row must be in it.
    stages : sequence of mapping
        How the plan was made: stage, method and resolved parameters, as plain JSON values.
    seed : int
    unit : {'sliceable', 'micro'}
        Whether ranks may slice a micro-batch. A plan with a ``csr`` column is always ``micro``.
    weight_semantics : {'importance', 'cluster'}, optional
        None: no weights are stored, all are 1.
    side : sequence of SideColumn
    parent, signals : str, optional
        Id of the manifest that this one continues; digest of the signals used.
    deep_hashes : mapping, optional
        SHA-256 of the dataset's files by fragment label.
    """

    def __init__(
        self,
        target: str | os.PathLike[str],
        *,
        snapshot: Snapshot,
        stages: Sequence[Mapping[str, Any]] = (),
        seed: int = 0,
        unit: Unit = "sliceable",
        weight_semantics: WeightSemantics | None = None,
        side: Sequence[SideColumn] = (),
        parent: str | None = None,
        signals: str | None = None,
        deep_hashes: Mapping[str, str] | None = None,
    ) -> None:
        self.target = Path(target)
        refuse_foreign_target(self.target)
        if any(c.kind == "csr" for c in side):
            unit = "micro"
        self._snapshot = snapshot
        self._side = tuple(side)
        self._schema = part_schema(weight_semantics is not None, side)
        self._identity: dict[str, Any] = {
            "format": FORMAT,
            "schema_version": SCHEMA_VERSION,
            "reader_features": [],
            "snapshot": snapshot.to_json(),
            "stages": [dict(s) for s in stages],
            "seed": seed,
            "unit": unit,
            "weight_semantics": weight_semantics,
            "side_columns": [{"name": c.name, "kind": c.kind, "type": c.type} for c in side],
            "parent": parent,
            "materialized_from": None,
            "signals": signals,
        }
        self._deep_hashes = deep_hashes
        self._records: list[EpochRecord] = []
        self._parts: list[PartRecord] = []
        self._fragments: set[int] = set()
        self._open: _OpenEpoch | None = None
        self._cleanup = ExitStack()
        self._folder = self._cleanup.enter_context(staging(self.target))

    def __enter__(self) -> ManifestWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.abandon()

    def abandon(self) -> None:
        """Drop what was staged; nothing after `commit`."""
        if self._open is not None:
            self._open.abandon()
            self._open = None
        self._cleanup.close()

    @contextmanager
    def epoch(self, number: int, *, eligible_rows: int | None = None) -> Iterator[None]:
        """Write one epoch, by `append` inside the block.

        Parameters
        ----------
        number : int
            0-based; epochs are written in ascending order.
        eligible_rows : int, optional
            Rows that were selected; those that are in no micro-batch are counted as dropped.
        """
        if self._records and number <= self._records[-1].epoch:
            raise SelectionError(
                f"Epochs are written in ascending order; {number} came after "
                f"{self._records[-1].epoch}."
            )
        self._open = _OpenEpoch(number, self)
        yield
        record, fragments = self._open.finish(eligible_rows)
        self._open = None
        self._records.append(record)
        self._fragments.update(fragments)

    def append(self, plan: BatchPlan) -> None:
        """Append micro-batches to the open epoch; `SelectionError` where they are no plan."""
        if self._open is None:
            raise SelectionError("Open an epoch before appending: with writer.epoch(0): ...")
        plan.check(self._side)
        if self._identity["weight_semantics"] is None and plan.weights is not None:
            raise SelectionError(
                "The plan has weights, but the manifest was declared without: pass "
                "weight_semantics='importance' or 'cluster'."
            )
        if self._identity["weight_semantics"] is not None and plan.weights is None:
            raise SelectionError("The manifest was declared with weights, but the plan has none.")
        self._open.append(plan)

    def commit(self, *, reports: Mapping[str, Any] | None = None) -> Manifest:
        """Write the header, publish the directory, and open it.

        Parameters
        ----------
        reports : mapping, optional
            What the stages tell of themselves, for the provenance.

        Raises
        ------
        ManifestConflictError
            Where the target holds another manifest, or anything else.
        """
        if not self._records:
            raise SelectionError("A manifest needs at least one epoch.")
        everywhere = [i for i, f in enumerate(self._snapshot.fragments) if f.rows]
        planned = sorted(self._fragments)
        identity = {
            **self._identity,
            "epochs": [vars(r) for r in self._records],
            "planned_fragments": "all" if planned == everywhere else planned,
        }
        provenance = {
            "created_by": _versions(),
            "reports": dict(reports or {}),
            "parts": records_to_json(self._parts),
        }
        header = header_bytes(identity, provenance)
        with storing("Writing the manifest's header", self._folder):
            if self._deep_hashes is not None:
                write_deep_hashes(self._folder, self._deep_hashes)
            write_synced(self._folder / HEADER, header)
        if not publish(self._folder, self.target):
            self._accept_existing(identity)
        self._cleanup.close()
        return Manifest.open(self.target)

    def _accept_existing(self, identity: Mapping[str, Any]) -> None:
        refuse_foreign_target(self.target)
        mine, there = digest(identity), Manifest.open(self.target).manifest_id
        if mine != there:
            raise ManifestConflictError(
                f"{self.target} holds another manifest: expected id {mine}, found {there}. "
                "Choose another target, or remove that one first."
            )


class _OpenEpoch:
    """Blocks and counts of the epoch being written."""

    def __init__(self, number: int, writer: ManifestWriter) -> None:
        self._number = number
        self._folder = writer._folder
        self._schema, self._side = writer._schema, writer._side
        self._finished: list[PartRecord] = writer._parts
        self._coverage = Coverage(writer._snapshot)
        self._part: PartWriter | None = None
        self._pending: list[BatchPlan] = []
        self._pending_rows = self._pending_batches = 0
        self._digest = hashlib.sha256()
        self._steps = self._batches = self._weight = 0
        self._smallest = self._divisor = 0
        self._step, self._in_step = -1, 0  # the step that may still grow

    def append(self, plan: BatchPlan) -> None:
        if len(plan) == 0:
            return
        self._coverage.mark(plan.rows)
        self._count(plan)
        self._pending.append(plan)
        self._pending_rows += len(plan.rows)
        self._pending_batches += len(plan)
        if self._pending_rows >= BLOCK_ROWS or self._pending_batches >= BLOCK_MICRO_BATCHES:
            self._flush(last=False)

    def _count(self, plan: BatchPlan) -> None:
        sizes = np.diff(plan.offsets)
        smallest = int(sizes.min())
        self._smallest = min(self._smallest, smallest) if self._batches else smallest
        self._batches += len(plan)
        if plan.weights is None:
            self._weight += len(plan.rows) * WEIGHT_ONE
        else:
            scaled = np.rint(plan.weights.astype(np.float64) * WEIGHT_ONE)
            self._weight += int(scaled.astype(np.int64).sum())
        self._count_steps(plan)

    def _count_steps(self, plan: BatchPlan) -> None:
        """Check that micro-batches number each step from 0 and steps ascend."""
        step, micro = plan.step.astype(np.int64), plan.micro.astype(np.int64)
        before_step = np.concatenate([[self._step], step[:-1]])
        before_micro = np.concatenate([[self._in_step - 1], micro[:-1]])
        follows = (step == before_step) & (micro == before_micro + 1)
        begins = (step > before_step) & (micro == 0)
        if not (follows | begins).all():
            at = int(np.argmin(follows | begins))
            raise SelectionError(
                f"Micro-batch ({step[at]}, {micro[at]}) cannot follow "
                f"({before_step[at]}, {before_micro[at]}): steps ascend, and micro-batches count "
                "from 0 in each step."
            )
        starts = np.flatnonzero(begins)
        self._steps += len(starts)
        if not len(starts):
            self._in_step += len(plan)
            return
        closed = [self._in_step + int(starts[0])] if self._step >= 0 else []
        closed += np.diff(starts).tolist()
        self._divisor = math.gcd(self._divisor, *closed)
        self._step, self._in_step = int(step[-1]), len(plan) - int(starts[-1])

    def _flush(self, *, last: bool) -> None:
        plan, start = BatchPlan.concat(self._pending), 0
        while start < len(plan):
            reaches = int(plan.offsets[start]) + BLOCK_ROWS
            by_rows = int(np.searchsorted(plan.offsets, reaches, side="left"))
            stop = min(by_rows, start + BLOCK_MICRO_BATCHES)
            if stop > len(plan):
                if not last:
                    break
                stop = len(plan)
            self._write(plan.slice(start, stop))
            start = stop
        rest = plan.slice(start, len(plan))
        self._pending = [rest] if len(rest) else []
        self._pending_rows, self._pending_batches = len(rest.rows), len(rest)

    def _write(self, block: BatchPlan) -> None:
        if self._part is None:
            self._part = PartWriter(self._folder, len(self._finished), self._schema)
        self._digest.update(block_digest(block, self._side))
        self._part.write(block)
        if self._part.rows >= PART_ROWS:
            self._close_part()

    def _close_part(self) -> None:
        if self._part is not None:
            self._finished.append(self._part.finish(self._number))
            self._part = None

    def finish(self, eligible_rows: int | None) -> tuple[EpochRecord, list[int]]:
        if self._batches == 0:
            raise SelectionError(
                f"Epoch {self._number} holds no micro-batch: no row was selected, or drop_last "
                "dropped the only one."
            )
        if self._pending:
            self._flush(last=True)
        self._close_part()
        seen = self._coverage
        record = EpochRecord(
            epoch=self._number,
            steps=self._steps,
            micro_batches=self._batches,
            samples=seen.samples,
            smallest_micro_batch=self._smallest,
            last_step_micro_batches=self._in_step,
            micro_divisor=math.gcd(self._divisor, self._in_step),
            coverage=seen.kind,
            distinct_rows=seen.distinct,
            dropped_rows=0 if eligible_rows is None else eligible_rows - seen.distinct,
            weight_sum=self._weight,
            logical_digest=self._digest.hexdigest(),
        )
        return record, seen.fragments()

    def abandon(self) -> None:
        if self._part is not None:
            self._part.abandon()


def refuse_foreign_target(target: Path) -> None:
    """Raise `ManifestConflictError` where the target holds something that is no manifest."""
    if target.is_dir() and any(target.iterdir()) and not (target / HEADER).exists():
        raise ManifestConflictError(
            f"{target} holds other files and no manifest; choose another target."
        )
    if target.exists() and not target.is_dir():
        raise ManifestConflictError(f"{target} is a file; choose another target.")


def check_space(folder: Path, bytes_needed: int) -> None:
    """Raise `StorageError` where the disk has no room for what is about to be written."""
    there = folder
    while not there.exists():
        there = there.parent
    status = os.statvfs(there)
    free = status.f_bavail * status.f_frsize
    if bytes_needed > free:
        raise StorageError(
            f"The plan needs about {bytes_needed:,} bytes in {folder}, and {free:,} are free. "
            "Free some space or choose another target; nothing was written."
        )


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in ("batchloom", "numpy", "pyarrow", "scikit-learn", "faiss-gpu", "faiss-cpu"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
