"""Selecting by loss on the engine: tasks count, what they counted is added up, a choice is made.

The passes are those of `coresets.loss_search`. A task counts the rows of some files of losses; the
counts are integers, so tasks, their order and the workers change nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..coresets.loss_rows import F32, LossRows
from ..coresets.loss_search import Choice as RowChoice
from ..coresets.loss_selector import PART_ROWS, LossSelector
from ..dataplane.bitmap import Bitmap
from ..dataplane.compiled import compiled_kernels
from ..dataplane.errors import DatasetChangedError
from .context import JobContext
from .losses import Losses, finite_rows
from .quantiles import Packed
from .signal_reading import run_tasks
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
    for run in losses.snapshot.runs():
        start, stop = run.start, run.stop
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


def count_rows(task: CountTask, wanted: Any, clean: bool, rows_file: str | None) -> Packed:
    """Count a task's rows for a pass, or those of them in a file of bits; runs on workers.

    `clean`: no loss is infinite.
    """
    compiled_kernels(task.rows)  # loaded here where they pay, they count small pieces too
    chosen = None if rows_file is None else Bitmap(np.load(rows_file, mmap_mode="r"))
    counts = np.zeros(wanted.shape, np.int64)
    for piece in task.pieces:
        for start, losses in _losses(piece):
            ids = range(start, start + len(losses))
            rows = LossRows(ids, losses) if clean else finite_rows(ids, losses)
            if chosen is not None:
                rows = rows.take(chosen.inside(ids.start, ids.stop))
            if len(rows):
                wanted.count(rows, into=counts)
    return Packed.pack(counts)


def _losses(piece: Piece) -> Iterator[tuple[int, F32]]:
    """Yield the losses of a piece's rows part by part: the first row id, and an array used again.

    They are NaN where there is no file of them.
    """
    losses = np.full(PART_ROWS, np.nan, np.float32)
    with ExitStack() as stack:
        file = None if piece.file is None else stack.enter_context(open(piece.file, "rb", 0))
        if file is not None:
            file.seek(4 * piece.first)
        for start in range(piece.start, piece.stop, PART_ROWS):
            part = losses[: piece.stop - start]
            if file is not None and file.readinto(part.data) != part.nbytes:
                raise DatasetChangedError(f"{piece.file} ends early; run the job again.")
            yield start, part


def search_rows(
    job: JobContext, state: PlanState, losses: Losses, method: LossSelector, epoch: int
) -> RowChoice:
    """Make the passes of a method over the rows that take part; return its choice."""
    search = method.search(epoch, len(state.rows))
    tasks = count_tasks(losses)
    rows_file = None
    if state.rows.chosen is not None and search.next is not None:
        rows_file = str(job.save(state.rows.chosen.words))
    number, clean = 0, not losses.nonfinite
    while search.next is not None:
        number += 1
        counts = np.zeros(search.next.shape, np.int64)
        with job.progress.step(f"epoch {epoch}: counting, pass {number}", len(state.rows)) as bar:
            for position, packed in run_tasks(
                job, count_rows, tasks, search.next, clean, rows_file
            ):
                counts += packed.unpack()
                bar.advance(tasks[position].rows)
        search.narrow(counts)
    return search.choice
