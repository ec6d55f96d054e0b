"""The manifest loader: the batches of a plan, with their data, for one rank.

    >>> loader = ManifestLoader("plan/", "data/", columns=["x", "y"])
    >>> for batch in loader:                    # batch["x"], batch.rows, batch.weights, batch.seeds
    ...     weighted_loss(losses(batch), batch).backward()
    ...     torch.save(loader.state_dict(), "loader.pt")

What is delivered is a function of the plan and the dataset: rank, world size, prefetching and
resuming decide who gets which rows when, never which rows a step holds.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Generator, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Literal

import torch

from ..dataplane.dataset import DatasetLike
from ..dataplane.epochs import EpochRecord
from ..dataplane.errors import BatchloomError, ParameterError, StorageError
from ..dataplane.manifest import Manifest
from ..gpu_access.transfer import Transfer, check_transfer, resolve_device
from .batch import Batch
from .buffers import Buffers, whole_buffers
from .checks import require_int
from .pieces import Pieces
from .prefetch import Prefetched
from .ranks import OnUneven, resolve_ranks
from .row_source import RowSource, SourceOptions, Sources, row_bytes
from .stats import LoaderStats, Meter
from .transforms import Run, Transform, apply, as_they_are, in_line, on_threads
from .walk import Cursor, Epochs, PlanLike, PlanWalk
from .window import Window

__all__ = ["ManifestLoader"]

_LARGEST_WINDOW = 64  # batches, where none is given


class ManifestLoader:
    """Iterates over a plan's batches.

    Parameters
    ----------
    plan : path, URI, Manifest or Series
    dataset : path, URI, list, mapping, Dataset or RowSource
        The dataset that was planned; more files than planned are fine. A `RowSource` answers for
        itself that its rows are those that were planned.
    columns : sequence of str, optional
        All columns when None.
    epochs : int or iterable of int, optional
        Of one iteration. None: all of the plan; E: those below E; an iterable: these, in order.
    rank, world_size : int, optional
        Those of torch.distributed where it runs, else 0 of 1.
    device : str or torch.device
        Where batches go. Arrow arrays stay on the host.
    transfer : {'auto', 'cpu'}
        How they get there.
    window : int, optional
        Batches whose rows are gathered at once, so that reads can be sorted and merged. None: as
        many as suit the source, 2 MB of rows where files are mapped, 32 MB where chunks must be
        decoded or fetched, and 64 batches at most.
    prefetch : int
        Batches that a background thread has ready ahead of the caller; whole windows are prepared,
        so it may be more. 0: no thread, prepared in line when the caller asks.
    reuse_buffers : bool
        Gather into the memory of earlier windows, where the source can: a batch, and any view of
        its columns, is then valid only until the next one is asked for.
    on_uneven : {'error', 'pad'}
        What to do where the plan cannot be dealt to `world_size` ranks; see `ranks`.
    transform : callable, optional
        Called with each `Batch` on the host, in the background thread; may return anything. A
        `Batch` that it returns goes to the device. Key its randomness by ``batch.seeds``.
    transform_threads : int
        Threads that the transform runs on, results in order; 0: the background thread alone.
    follow : bool
        Wait for the members that a series gains, until `epochs` are complete.
    poll_seconds : float
        How often to look for them.
    storage_options : mapping, optional
        Options of the filesystem of plan and dataset, for URIs.
    cache_bytes : int
        Decoded row groups that are kept.
    verify : {'header', 'all'}
        ``'all'`` checks every byte of the plan before its first batch.

    Attributes
    ----------
    rank, world_size : int
    columns : list of str
    epochs : tuple of int
        Of a whole iteration.

    Raises
    ------
    DatasetChangedError
        Where a file that holds planned rows is gone or changed.
    WorldSizeError
        Where the plan cannot be dealt to that many ranks, and `on_uneven` is ``'error'``.
    ManifestCorruptError, ManifestError, MissingColumnError, ParameterError

    Notes
    -----
    One iteration is live at a time: a new one ends the one before it. A fresh ``iter()`` starts at
    the first epoch, or where `load_state_dict` says; see `walk`.
    """

    def __init__(
        self,
        plan: PlanLike,
        dataset: DatasetLike | RowSource,
        *,
        columns: Sequence[str] | None = None,
        epochs: Epochs = None,
        rank: int | None = None,
        world_size: int | None = None,
        device: str | torch.device = "cpu",
        transfer: Transfer = "auto",
        window: int | None = None,
        prefetch: int = 2,
        reuse_buffers: bool = False,
        on_uneven: OnUneven = "error",
        transform: Transform | None = None,
        transform_threads: int = 0,
        follow: bool = False,
        poll_seconds: float = 1.0,
        storage_options: Mapping[str, Any] | None = None,
        cache_bytes: int = 256 << 20,
        verify: Literal["header", "all"] = "header",
    ) -> None:
        if window is not None:
            require_int("window", window, 1)
        require_int("prefetch", prefetch, 0)
        require_int("transform_threads", transform_threads, 0)
        require_int("cache_bytes", cache_bytes, 0)
        check_transfer(transfer)
        _check_columns(columns)
        self._transfer: Transfer = transfer
        self._device = resolve_device(device)  # here: the current GPU belongs to this thread
        self._walk = PlanWalk(
            plan,
            epochs=epochs,
            ranks=resolve_ranks(rank, world_size, on_uneven),
            follow=follow,
            poll_seconds=poll_seconds,
            verify=verify,
            storage_options=storage_options,
        )
        self._sources = Sources(
            dataset,
            SourceOptions(columns, self._device, transfer, cache_bytes, storage_options),
        )
        for manifest in self._walk.members():
            self._sources.bind(manifest)
        self._window = window
        self._prefetch = prefetch
        self._reuse = reuse_buffers
        self._transform = transform
        self._threads = transform_threads
        self._meter = Meter()
        # Weak: an iteration that the caller dropped must be collected, which ends its thread.
        self._live: weakref.ref[_Iteration] | None = None

    @property
    def rank(self) -> int:
        return self._walk.ranks.rank

    @property
    def world_size(self) -> int:
        return self._walk.ranks.world_size

    @property
    def epochs(self) -> tuple[int, ...]:
        return self._walk.epochs

    @property
    def columns(self) -> list[str]:
        return list(self._sources.columns)

    def __len__(self) -> int:
        """Return the batches of a whole iteration, the same on every rank."""
        return self._walk.batches()

    def __iter__(self) -> Iterator[Any]:
        self._end_live()
        cursor, stopped = self._walk.begin(), threading.Event()
        buffers = Buffers() if self._reuse else None
        runs = self._runs(cursor, buffers, stopped)
        source: _Runs = runs
        if self._prefetch:
            source = Prefetched(runs, self._prefetch, stopped, lambda run: len(run.results))
        iteration = _Iteration(source, cursor, self._meter, self._sources, buffers)
        self._live = weakref.ref(iteration)
        return iteration

    def stats(self) -> LoaderStats:
        """Return what was delivered so far, how fast, and how long the caller waited for it."""
        return self._meter.stats(self._sources.stats())

    def state_dict(self) -> dict[str, Any]:
        """Return where the caller stands, as JSON values; see `state`."""
        return self._walk.state().to_json()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Let the next iteration go on at a state; any rank, world size and prefetch may load it.

        Raises
        ------
        ResumeMismatchError
            Where it is no state, or none of this plan.
        """
        self._walk.load(state)
        self._end_live()

    def set_epoch(self, epoch: int) -> None:
        """Let iterations cover this epoch alone, as torch's samplers have it; see `walk`."""
        self._walk.set_epoch(epoch)

    def close(self) -> None:
        """End the live iteration and its thread, and close the dataset's files."""
        self._end_live()
        self._sources.close()

    def _end_live(self) -> None:
        live = None if self._live is None else self._live()
        if live is not None:
            live.replace()
        self._live = None

    # --- from pieces to what the caller gets ------------------------------------------------------

    def _runs(
        self, cursor: Cursor, buffers: Buffers | None, stopped: threading.Event
    ) -> Generator[Run, None, None]:
        windows = self._windows(cursor, buffers, stopped)
        if self._transform is None:
            yield from as_they_are(map(self._moved, windows))
            return
        if self._threads:
            work = partial(apply, self._transform)
            runs = on_threads(windows, work, self._transformed, threads=self._threads)
        else:
            runs = in_line(windows, self._transform, self._transformed)
        for run in runs:
            yield run._replace(results=[self._moved_result(r) for r in run.results])

    def _windows(
        self, cursor: Cursor, buffers: Buffers | None, stopped: threading.Event
    ) -> Iterator[Window]:
        for pieces in self._walk.windows(cursor, self._window_size, stopped):
            yield from self._gathered(pieces, buffers)

    def _window_size(self, manifest: Manifest, record: EpochRecord) -> int:
        """Return how many batches of an epoch are gathered at once."""
        if self._window is not None:
            return self._window
        source = self._sources.source(manifest)
        rows = record.samples / record.micro_batches
        if manifest.unit == "sliceable":
            rows = max(1.0, rows / self.world_size)
        fitting = source.window_bytes / (rows * row_bytes(source.schema))
        return max(1, min(int(fitting), _LARGEST_WINDOW))

    def _gathered(self, pieces: Pieces, buffers: Buffers | None) -> Iterator[Window]:
        begun = time.perf_counter()
        taken = None if buffers is None else buffers.take(len(pieces.ids))
        try:
            columns = self._sources.source(pieces.manifest).gather(pieces.ids, taken)
        except StorageError:
            raise
        except BatchloomError:
            if len(pieces) == 1:
                raise
            # One of the batches cannot be read: those before it can.
            for index in range(len(pieces)):
                yield from self._gathered(pieces.part(index, index + 1), buffers)
            return
        window = Window(pieces, columns)
        if buffers is not None:
            window.buffers = whole_buffers(columns, taken)
        self._meter.spent("storage", time.perf_counter() - begun)
        yield window

    def _transformed(self, seconds: float) -> None:
        self._meter.spent("transform", seconds)

    def _moved(self, window: Window) -> Window:
        if self._device.type == "cpu":
            return window
        begun = time.perf_counter()
        window.to(self._device, self._transfer)
        self._meter.spent("transfer", time.perf_counter() - begun)
        return window

    def _moved_result(self, result: Any) -> Any:
        if self._device.type == "cpu" or not isinstance(result, Batch):
            return result
        begun = time.perf_counter()
        moved = result.to(self._device, self._transfer)
        self._meter.spent("transfer", time.perf_counter() - begun)
        return moved


_Runs = Generator[Run, None, None] | Prefetched[Run]


class _Iteration(Iterator[Any]):
    """One way through the plan; its cursor says where the caller stands."""

    def __init__(
        self,
        source: _Runs,
        cursor: Cursor,
        meter: Meter,
        sources: Sources,
        buffers: Buffers | None,
    ) -> None:
        self._source = source
        self._cursor = cursor
        self._meter = meter
        self._sources = sources
        self._buffers = buffers
        self._window: Window | None = None
        self._results: list[Any] = []
        self._next, self._first = 0, 0
        self._ended = self._replaced = False
        meter.begin()

    def __next__(self) -> Any:
        # Of the loader's own work, this is all that is done for each batch.
        at = self._next
        if at == len(self._results):
            self._results, self._next = [], 0
            self._take()
            at = 0
        self._next = at + 1
        cursor = self._cursor
        cursor.pieces, cursor.index = self._pieces, self._first + at
        return self._results[at]

    def _take(self) -> None:
        """Wait for what comes next."""
        if self._replaced:
            raise BatchloomError(
                "This iteration was ended by a newer iter() or load_state_dict() of its loader. "
                "Make a second loader to read a plan twice at once."
            )
        begun = time.perf_counter()
        try:
            run = next(self._source)
        except BaseException:
            self._ended = True
            raise
        last, self._window = self._window, run.window
        if self._buffers is not None and last is not None and last is not run.window:
            self._buffers.give(last.buffers)
        self._pieces, self._first, self._results = run.pieces, run.first, run.results
        self._meter.took(self._cursor, run, begun)
        self._meter.warn(self._sources.stats)

    def close(self) -> None:
        """Stop preparing batches; the iteration is over."""
        self._ended = True
        self._source.close()
        self._results, self._next = [], 0

    def replace(self) -> None:
        """Close, and let a caller who goes on all the same know."""
        self._replaced = not self._ended
        self.close()


def _check_columns(columns: Any) -> None:
    if columns is None:
        return
    if isinstance(columns, str) or len(set(columns)) < len(columns):
        raise ParameterError(
            "The 'columns' parameter must be a list of different column names. "
            f"Got {columns!r} instead."
        )
