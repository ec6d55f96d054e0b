"""From pieces of a plan to what the caller gets: gather, collate, transform, move to the device.

Runs wholly in whatever thread pulls at it; `iteration` decides in which.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ..dataplane.epochs import EpochRecord
from ..dataplane.errors import BatchloomError, StorageError
from ..dataplane.manifest import Manifest
from ..gpu_access.arriving import under_way
from ..gpu_access.cpu import Column
from ..gpu_access.transfer import Transfer
from .batch import Batch
from .buffers import Buffers, first_rows, whole_buffers
from .collate import Padded, collated
from .mapped_source import OrderedSource
from .pieces import Pieces
from .row_source import RowSource, Sources, row_bytes
from .stats import Meter
from .transforms import Run, Transform, apply, as_they_are, in_line, on_threads
from .walk import Cursor, PlanWalk
from .window import Window, shared_out
from .workers import Workers

__all__ = ["Pipeline"]

_LARGEST_WINDOW = 64  # batches, where none is given
_LARGEST_MESSAGE = 8  # batches, to a worker process


@dataclass(frozen=True)
class Pipeline:
    """How a loader makes batches.

    Attributes
    ----------
    walk : PlanWalk
    sources : Sources
    meter : Meter
    device, transfer
        Where batches go, and how.
    window : int or None
        Batches gathered at once.
    collate : mapping of str → Padded or None
        How ragged columns are made tensors; None: jagged.
    transform : callable or None
    threads : int
        That it runs on; 0: the thread that pulls.
    workers : Workers or None
        That it runs in.
    """

    walk: PlanWalk
    sources: Sources
    meter: Meter
    device: torch.device
    transfer: Transfer
    window: int | None
    collate: Mapping[str, Padded | None]
    transform: Transform | None
    threads: int
    workers: Workers | None

    def runs(
        self, cursor: Cursor, buffers: Buffers | None, stopped: threading.Event
    ) -> Generator[Run, None, None]:
        """Yield what the caller gets, in order of the plan.

        Parameters
        ----------
        cursor : Cursor
            The iteration.
        buffers : Buffers, optional
            Memory that may be used again.
        stopped : threading.Event
            Set when nobody waits any more.
        """
        windows = self._windows(cursor, buffers, stopped)
        if self.transform is None:
            yield from as_they_are(map(self._moved, windows))
            return
        runs = self._transformed(self.transform, windows, stopped)
        if self.device.type == "cpu":
            yield from runs
            return
        for run in runs:
            yield run._replace(results=[self._moved_result(r, run.window) for r in run.results])

    def window_size(self, manifest: Manifest, record: EpochRecord) -> int:
        """Return how many batches of an epoch are gathered at once."""
        if self.window is not None:
            return self.window
        source = self.sources.of(manifest)
        rows = record.samples / record.micro_batches
        if manifest.unit == "sliceable":
            rows = max(1.0, rows / self.walk.ranks.world_size)
        fragments = manifest.snapshot.fragments
        in_file = sum(f.bytes for f in fragments) / max(1, manifest.snapshot.rows)
        fitting = source.window_bytes / (rows * row_bytes(source.schema, in_file))
        return max(1, min(int(fitting), _LARGEST_WINDOW))

    def _windows(
        self, cursor: Cursor, buffers: Buffers | None, stopped: threading.Event
    ) -> Iterator[Window]:
        for window in self.walk.windows(cursor, self.window_size, stopped):
            # Members of a series may have files of their own.
            for source, pieces in itertools.groupby(window, lambda p: self.sources.of(p.manifest)):
                yield from self._gathered(source, list(pieces), buffers)

    def _gathered(
        self, source: RowSource, group: list[Pieces], buffers: Buffers | None
    ) -> Iterator[Window]:
        """Gather the rows of some pieces at once, and share them out."""
        begun = time.perf_counter()
        count = sum(len(p.ids) for p in group)
        taken = None if buffers is None else buffers.take(count)
        try:
            self.sources.activate(source)
            columns = _columns_of(source, group, first_rows(taken, count))
            windows = shared_out(group, columns)
            if self.collate:
                windows = [collated(window, self.collate) for window in windows]
        except StorageError:
            raise
        except BatchloomError:
            alone = [p.part(k, k + 1) for p in group for k in range(len(p))]
            if len(alone) == 1:
                raise
            # One of the batches cannot be read: those before it can.
            for one in alone:
                yield from self._gathered(source, [one], buffers)
            return
        if buffers is not None:
            windows[-1].buffers = whole_buffers(columns, taken)
        self.meter.spent("storage", time.perf_counter() - begun)
        yield from windows

    def _transformed(
        self, transform: Transform, windows: Iterator[Window], stopped: threading.Event
    ) -> Generator[Run, None, None]:
        spent = partial(self.meter.spent, "transform")
        if self.workers is not None:
            self.workers.start()
            return on_threads(
                windows,
                self.workers.work,
                spent,
                stopped,
                threads=self.workers.count,
                together=_LARGEST_MESSAGE,
                abandon=self.workers.close,
            )
        if self.threads:
            work = partial(apply, transform)
            return on_threads(windows, work, spent, stopped, threads=self.threads)
        return in_line(windows, transform, spent)

    def _moved(self, window: Window) -> Window:
        if self.device.type == "cpu":
            return window
        begun = time.perf_counter()
        window.to(self.device, self.transfer)
        self.meter.spent("transfer", time.perf_counter() - begun)
        return window

    def _moved_result(self, result: Any, window: Window) -> Any:
        if not isinstance(result, Batch):
            return result
        begun = time.perf_counter()
        moved = result.to(self.device, self.transfer)
        window.expect(under_way(moved.values_by_name(), self.device))
        self.meter.spent("transfer", time.perf_counter() - begun)
        return moved


def _columns_of(
    source: RowSource, group: list[Pieces], out: Mapping[str, torch.Tensor] | None
) -> Mapping[str, Column]:
    """Gather the rows of some pieces, one after the other."""
    if isinstance(source, OrderedSource):
        for pieces in group:
            source.require(pieces.manifest, pieces.record.epoch)
        return source.gather(_joined(group, "places"), out)
    return source.gather(_joined(group, "ids"), out)


def _joined(group: list[Pieces], name: str) -> npt.NDArray[np.uint64]:
    parts = [getattr(pieces, name) for pieces in group]
    return parts[0] if len(parts) == 1 else np.concatenate(parts)
