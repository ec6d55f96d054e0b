"""Selecting by loss on the engine: tasks count, what they counted is added up, a choice is made.

The passes are those of `coresets.loss_search`. A task counts the rows of some files of losses; the
counts are integers, so tasks, their order and the workers change nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..coresets.loss_search import Choice as RowChoice
from ..coresets.loss_search import LossRows
from ..coresets.loss_selector import LossSelector, count_in_parts
from ..dataplane.bitmap import Bitmap
from ..dataplane.compiled import compiled_kernels
from ..dataplane.row_column import CHUNK_ROWS
from .context import JobContext
from .losses import Losses
from .quantiles import Packed
from .signal_reading import id_runs, run_tasks
from .stages import PlanState

__all__ = ["search_rows"]

TASK_ROWS = 1 << 25
"""Rows that a task counts: a tenth of a second."""


@dataclass(frozen=True)
class Piece:
    """Row ids without a gap, and the place of their losses.

    Attributes
    ----------
    start, stop : int
    file : str or None
        None: they have none.
    first : int
        Position of the first one's loss in the file.
    """

    start: int
    stop: int
    file: str | None
    first: int


@dataclass(frozen=True)
class CountTask:
    """Rows that a task counts."""

    pieces: tuple[Piece, ...]

    @property
    def rows(self) -> int:
        return sum(p.stop - p.start for p in self.pieces)

    @property
    def label(self) -> str:
        return f"rows {self.pieces[0].start:,} to {self.pieces[-1].stop - 1:,}"

    @property
    def example(self) -> str | None:
        """A local file that it reads."""
        return self.pieces[0].file


def count_tasks(losses: Losses) -> list[CountTask]:
    """Cut all rows into tasks."""
    tasks: list[CountTask] = []
    pieces: list[Piece] = []
    held = 0
    for piece in _pieces(losses):
        pieces.append(piece)
        held += piece.stop - piece.start
        if held >= TASK_ROWS:
            tasks.append(CountTask(tuple(pieces)))
            pieces, held = [], 0
    return [*tasks, CountTask(tuple(pieces))] if pieces else tasks


def _pieces(losses: Losses) -> Iterator[Piece]:
    """Yield the pieces in order: no longer than a task, each in one file."""
    files = [] if losses.column is None else list(losses.column.segments)
    used = 0  # of the first file
    for start, stop in id_runs(losses.snapshot):
        while start < stop:
            until, file = min(stop, start + TASK_ROWS), None
            if losses.column is not None:
                until = min(until, start + files[0].rows - used)
                file = str(files[0].path)
            yield Piece(start, until, file, used)
            used += until - start
            if losses.column is not None and used == files[0].rows:
                del files[0]
                used = 0
            start = until


def count_rows(task: CountTask, wanted: Any, rows_file: str | None) -> Packed:
    """Count a task's rows for a pass, or those of them in a file of bits; runs on workers."""
    compiled_kernels(task.rows)  # loaded here where they pay, they count small pieces too
    chosen = None if rows_file is None else Bitmap(np.load(rows_file, mmap_mode="r"))
    counts = np.zeros(wanted.shape, np.int64)
    for piece in task.pieces:
        for start in range(piece.start, piece.stop, CHUNK_ROWS):
            rows = _rows(piece, start, min(start + CHUNK_ROWS, piece.stop), chosen)
            if len(rows):
                count_in_parts(wanted, rows, counts)
    return Packed.pack(counts)


def _rows(piece: Piece, start: int, stop: int, chosen: Bitmap | None) -> LossRows:
    ids = np.arange(start, stop, dtype=np.uint64)
    if piece.file is None:
        losses = np.full(len(ids), np.nan, np.float32)
    else:
        place = 4 * (piece.first + start - piece.start)
        losses = np.fromfile(piece.file, np.float32, len(ids), offset=place)
    if chosen is not None:
        inside = chosen.inside(start, stop)
        ids, losses = ids[inside], losses[inside]
    return LossRows(ids, losses, np.isfinite(losses))


def search_rows(
    job: JobContext, state: PlanState, losses: Losses, method: LossSelector, epoch: int
) -> RowChoice:
    """Make the passes of a method over the rows that take part; return its choice."""
    search = method.search(epoch, len(state.rows))
    tasks = count_tasks(losses)
    rows_file = None
    if state.rows.chosen is not None and search.next is not None:
        rows_file = str(job.save(state.rows.chosen.words))
    number = 0
    while search.next is not None:
        number += 1
        counts = np.zeros(search.next.shape, np.int64)
        with job.progress.step(f"epoch {epoch}: counting, pass {number}", len(state.rows)) as bar:
            for position, packed in run_tasks(job, count_rows, tasks, search.next, rows_file):
                counts += packed.unpack()
                bar.advance(tasks[position].rows)
        search.narrow(counts)
    return search.choice
