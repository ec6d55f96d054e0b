"""One epoch of a manifest being written: micro-batches in, blocks and parts out.

Blocks and parts close by the micro-batches alone, never by the pieces in which they come (see
`manifest`). Memory does not grow with the epoch: what fills a block goes to disk as it is, the rest
is copied, so the caller's arrays are its own again. What is refused leaves the epoch as it was.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from .epoch_count import EpochCounter
from .epochs import EpochRecord
from .errors import SelectionError, StorageError
from .manifest_part import PartRecord, PartWriter
from .plan import BatchPlan, SideColumn
from .snapshot import Snapshot

__all__ = ["BLOCK_MICRO_BATCHES", "BLOCK_ROWS", "PART_ROWS", "EpochWriter"]

BLOCK_MICRO_BATCHES = 4096
BLOCK_ROWS = 1 << 20
PART_ROWS = 4 << 20


class EpochWriter:
    """Blocks and counts of the epoch being written.

    Parameters
    ----------
    number : int
    folder : Path
        Where parts are written.
    first_part : int
        Number of the first part, for its temporary name and for messages.
    snapshot : Snapshot
    schema : pyarrow.Schema
        Of the parts.
    side : sequence of SideColumn

    Attributes
    ----------
    parts : list of PartRecord
        Those finished so far.
    """

    def __init__(
        self,
        number: int,
        folder: Path,
        first_part: int,
        snapshot: Snapshot,
        schema: pa.Schema,
        side: Sequence[SideColumn],
    ) -> None:
        self.number = number
        self.parts: list[PartRecord] = []
        self._folder, self._first_part = folder, first_part
        self._schema = schema
        self._counter = EpochCounter(number, snapshot, side)
        self._part: PartWriter | None = None
        self._pending: list[BatchPlan] = []
        self._pending_rows = self._pending_batches = 0
        self._failed = False

    def append(self, plan: BatchPlan) -> None:
        """Append the micro-batches of a plan that was checked."""
        self._refuse_failed()
        if len(plan) == 0:
            return
        self._counter.add(plan)
        try:
            self._fill_blocks(plan)
        except BaseException:
            self._failed = True
            raise

    def _refuse_failed(self) -> None:
        if self._failed:
            raise StorageError(
                f"Epoch {self.number} cannot go on: an earlier write of it failed. Nothing was "
                "committed; run the same command again."
            )

    # --- blocks and parts -------------------------------------------------------------------------

    def _fill_blocks(self, plan: BatchPlan) -> None:
        start = 0
        while start < len(plan):
            stop = self._block_stop(plan, start)
            piece = plan.slice(start, min(stop, len(plan)))
            self._pending.append(piece if stop <= len(plan) else piece.copied())
            self._pending_rows += len(piece.rows)
            self._pending_batches += len(piece)
            if stop <= len(plan):
                self._write_block()
            start = stop

    def _block_stop(self, plan: BatchPlan, start: int) -> int:
        """Return the micro-batch before which the block closes; beyond the plan: it does not."""
        reached = int(plan.offsets[start]) + BLOCK_ROWS - self._pending_rows
        by_rows = int(np.searchsorted(plan.offsets, reached, side="left"))
        return min(by_rows, start + BLOCK_MICRO_BATCHES - self._pending_batches)

    def _write_block(self) -> None:
        block = BatchPlan.concat(self._pending)
        self._pending, self._pending_rows, self._pending_batches = [], 0, 0
        if self._part is None:
            number = self._first_part + len(self.parts)
            self._part = PartWriter(self._folder, number, self._schema)
        self._counter.hash_block(block)
        self._part.write(block)
        if self._part.rows >= PART_ROWS:
            self._close_part()

    def _close_part(self) -> None:
        if self._part is not None:
            self.parts.append(self._part.finish(self.number))
            self._part = None

    # --- end --------------------------------------------------------------------------------------

    def finish(self, eligible_rows: int | None) -> tuple[EpochRecord, list[int]]:
        """Close the last part; return what the identity says, and the fragments planned."""
        self._refuse_failed()
        seen = self._counter.coverage
        if self._counter.micro_batches == 0:
            raise SelectionError(
                f"Epoch {self.number} holds no micro-batch: no row was selected, or drop_last "
                "dropped the only one."
            )
        if eligible_rows is not None and eligible_rows < seen.distinct:
            raise SelectionError(
                f"Epoch {self.number} holds {seen.distinct} rows, more than the {eligible_rows} "
                "that were selected."
            )
        if self._pending:
            self._write_block()
        self._close_part()
        dropped = 0 if eligible_rows is None else int(eligible_rows) - seen.distinct
        return self._counter.record(dropped_rows=dropped), seen.fragments()

    def abandon(self, keep: Collection[str] = ()) -> None:
        """Drop what was written, but for parts that other epochs hold too."""
        if self._part is not None:
            self._part.abandon()
            self._part = None
        for part in self.parts:
            if part.name not in keep:
                (self._folder / part.name).unlink(missing_ok=True)
