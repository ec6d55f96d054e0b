"""What an epoch's micro-batches add up to: the counts and the digest that the identity holds.

The writer counts while it writes; `recount` counts again what is there, to prove that a
manifest holds what its identity says. Memory is one bit a row of the dataset.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from .coverage import Coverage
from .epochs import WEIGHT_ONE, Epoch, EpochRecord
from .errors import ManifestCorruptError, RowIdError, SelectionError
from .manifest_part import block_digest
from .plan import BatchPlan, SideColumn
from .snapshot import Snapshot

__all__ = ["EpochCounter", "recount", "recount_epoch", "weight_sum"]

_BY_THE_RULES = "The manifest was not written by the rules; plan anew."


class Counted(Protocol):
    """What is asked here of a `Manifest`, which itself proves its counts by this module."""

    path: Path | str
    side_columns: tuple[SideColumn, ...]
    records: dict[int, EpochRecord]

    @property
    def snapshot(self) -> Snapshot:
        """Row ids."""

    @property
    def epochs(self) -> tuple[int, ...]:
        """Numbers of the epochs, ascending."""

    def epoch(self, number: int) -> Epoch:
        """One epoch's micro-batches."""

    def planned_fragments(self) -> list[int]:
        """Fragments that hold planned rows."""


class EpochCounter:
    """Counts an epoch's micro-batches as they come, and hashes its blocks.

    Parameters
    ----------
    number : int
    snapshot : Snapshot
    side : sequence of SideColumn

    Attributes
    ----------
    coverage : Coverage
        Rows seen so far.
    micro_batches : int
    """

    def __init__(self, number: int, snapshot: Snapshot, side: Sequence[SideColumn]) -> None:
        self.number = number
        self.coverage = Coverage(snapshot)
        self.micro_batches = 0
        self._side = side
        self._digest = hashlib.sha256()
        self._steps = self._weight = 0
        self._smallest = self._divisor = 0
        self._step, self._in_step = -1, 0  # the step that may still grow

    def add(self, plan: BatchPlan) -> None:
        """Count the micro-batches of a plan that was checked; what is refused changes nothing.

        Raises
        ------
        SelectionError, RowIdError
            Where they are no numbering of steps, or a row is in no fragment.
        """
        if len(plan) == 0:
            return
        begins = self._check_steps(plan)
        self.coverage.mark(plan.rows)
        smallest = int(np.diff(plan.offsets).min())
        self._smallest = min(self._smallest, smallest) if self.micro_batches else smallest
        self.micro_batches += len(plan)
        if plan.weights is None:
            self._weight += len(plan.rows) * WEIGHT_ONE
        else:
            self._weight += weight_sum(plan.weights)
        self._count_steps(plan, begins)

    def hash_block(self, block: BatchPlan) -> None:
        """Take the next block into the logical digest."""
        self._digest.update(block_digest(block, self._side))

    def record(self, *, dropped_rows: int) -> EpochRecord:
        """Return what the identity says of the epoch."""
        seen = self.coverage
        return EpochRecord(
            epoch=self.number,
            steps=self._steps,
            micro_batches=self.micro_batches,
            samples=seen.samples,
            smallest_micro_batch=self._smallest,
            last_step_micro_batches=self._in_step,
            micro_divisor=math.gcd(self._divisor, self._in_step),
            coverage=seen.kind,
            distinct_rows=seen.distinct,
            dropped_rows=dropped_rows,
            weight_sum=self._weight,
            logical_digest=self._digest.hexdigest(),
        )

    def _check_steps(self, plan: BatchPlan) -> npt.NDArray[np.bool_]:
        """Return which micro-batches begin a step; refuse what is no numbering of steps."""
        step, micro = plan.step.astype(np.int64), plan.micro.astype(np.int64)
        before_step = np.concatenate([[self._step], step[:-1]])
        before_micro = np.concatenate([[self._in_step - 1], micro[:-1]])
        follows = (step == before_step) & (micro == before_micro + 1)
        begins: npt.NDArray[np.bool_] = (step > before_step) & (micro == 0)
        if not (follows | begins).all():
            at = int(np.argmin(follows | begins))
            before = f"({before_step[at]}, {before_micro[at]})" if before_step[at] >= 0 else "none"
            raise SelectionError(
                f"Micro-batch ({step[at]}, {micro[at]}) cannot follow {before}: steps ascend, and "
                "micro-batches count from 0 in each step."
            )
        return begins

    def _count_steps(self, plan: BatchPlan, begins: npt.NDArray[np.bool_]) -> None:
        starts = np.flatnonzero(begins)
        self._steps += len(starts)
        if not len(starts):
            self._in_step += len(plan)
            return
        closed = [self._in_step + int(starts[0])] if self._step >= 0 else []
        closed += np.diff(starts).tolist()
        self._divisor = math.gcd(self._divisor, *closed)
        self._step, self._in_step = int(plan.step[-1]), len(plan) - int(starts[-1])


def recount(
    manifest: Counted, advance: Callable[[int], None] = lambda rows: None
) -> list[EpochRecord]:
    """Count again what the blocks of every epoch hold, and compare it with the identity.

    Parameters
    ----------
    manifest : Manifest
    advance : callable
        Told how many more rows were counted.

    Returns
    -------
    list of EpochRecord
        As counted, by epoch. Where the identity holds no logical digest, the one computed stands
        here; ``dropped_rows`` is not in the blocks and is taken as it is said.

    Raises
    ------
    ManifestCorruptError
        At the first difference, naming epoch and field, expected and found.
    """
    records: list[EpochRecord] = []
    fragments: set[int] = set()
    for number in manifest.epochs:
        record, planned_here = recount_epoch(manifest, number, advance)
        records.append(record)
        fragments.update(planned_here)
    planned = set(manifest.planned_fragments())
    if planned != fragments:
        index = min(planned ^ fragments)
        label = manifest.snapshot.fragments[index].label
        rows = ("rows", "none") if index in planned else ("no row", "some")
        raise ManifestCorruptError(
            f"{manifest.path}: expected {rows[0]} of fragment {label}, as the identity says; found "
            f"{rows[1]} in its blocks. {_BY_THE_RULES}"
        )
    return records


def recount_epoch(
    manifest: Counted, number: int, advance: Callable[[int], None] = lambda rows: None
) -> tuple[EpochRecord, list[int]]:
    """Return one epoch as counted again, and the fragments that it plans; see `recount`."""
    counter = _count_epoch(manifest, number, advance)
    return _compare(manifest, counter), counter.coverage.fragments()


def _count_epoch(manifest: Counted, number: int, advance: Callable[[int], None]) -> EpochCounter:
    counter = EpochCounter(number, manifest.snapshot, manifest.side_columns)
    for index, block in enumerate(manifest.epoch(number).blocks()):
        try:
            block.check(manifest.side_columns)
            counter.add(block)
        except (SelectionError, RowIdError) as error:
            raise ManifestCorruptError(
                f"{manifest.path}, epoch {number}: its block {index} holds no plan: {error} "
                f"{_BY_THE_RULES}"
            ) from error
        counter.hash_block(block)
        advance(len(block.rows))
    return counter


def _compare(manifest: Counted, counter: EpochCounter) -> EpochRecord:
    said = manifest.records[counter.number]
    found = replace(counter.record(dropped_rows=said.dropped_rows), recipe=said.recipe)
    where = f"{manifest.path}, epoch {counter.number}"
    for name, value in vars(found).items():
        expected = getattr(said, name)
        if expected is not None and expected != value:
            raise ManifestCorruptError(
                f"{where}: expected {name.replace('_', ' ')} {expected}, as the identity says; "
                f"found {value} in its blocks. {_BY_THE_RULES}"
            )
    others = manifest.snapshot.rows - found.distinct_rows
    if not 0 <= said.dropped_rows <= others:
        raise ManifestCorruptError(
            f"{where}: expected dropped rows {said.dropped_rows}, as the identity says; found "
            f"{others} rows beside those planned. {_BY_THE_RULES}"
        )
    return found


def weight_sum(weights: npt.NDArray[np.float32]) -> int:
    """Return Σ round(w · 2²⁴), halves to even, exactly."""
    scaled = np.rint(weights.astype(np.float64) * WEIGHT_ONE)
    if float(scaled.max()) * len(scaled) < 2**62:
        return int(scaled.astype(np.int64).sum())
    return sum(int(value) for value in scaled)
