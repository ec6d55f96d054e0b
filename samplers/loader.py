"""The manifest loader: the batches of a plan, with their data, for one rank.

    >>> loader = ManifestLoader("plan/", "data/", columns=["x", "y"])
    >>> for batch in loader:                    # batch["x"], batch.rows, batch.weights, batch.seeds
    ...     weighted_loss(losses(batch), batch).backward()
    ...     torch.save(loader.state_dict(), "loader.pt")

What is delivered is a function of the plan and the dataset: rank, world size, prefetching and
resuming decide who gets which rows when, never which rows a step holds.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch

from ..dataplane.checks import require_int
from ..dataplane.errors import ParameterError
from ..dataplane.pack_cache import CACHE_BYTES
from ..dataplane.series import Series
from ..gpu_access.transfer import Transfer, check_transfer, resolve_device
from .buffers import Buffers
from .collate import Collate, resolve_collate
from .iteration import Ahead, Iteration, prefetched
from .pipeline import Pipeline
from .ranks import OnUneven, resolve_ranks
from .row_source import RowsLike, SourceOptions, Sources
from .stats import LoaderStats, Meter
from .transforms import Transform
from .walk import Epochs, PlanLike, PlanWalk
from .walked import Resumable
from .workers import Workers

if TYPE_CHECKING:
    from .progress import LiveLine

__all__ = ["ManifestLoader"]

_DEPTH_ON_DEVICE = 2


class ManifestLoader(Resumable):
    """Iterates over a plan's batches.

    Parameters
    ----------
    plan : path, URI, Manifest or Series
    dataset : path, URI, list, mapping, Dataset, PackedTable or RowSource
        The dataset that was planned, more files than planned are fine; or a packed table of it. A
        `RowSource` answers for itself that its rows are those that were planned.
    columns : sequence of str, optional
        All columns when None.
    epochs : int or iterable of int, optional
        Of one iteration. None: all of the plan; E: those below E; an iterable: these, in order.
    rank, world_size : int, optional
        Those of torch.distributed where it runs, else 0 of 1.
    device : str or torch.device
        Where batches go. Arrow arrays stay on the host.
    transfer : {'auto', 'unified', 'staged', 'cpu'}
        How they get there: gathered by the GPU's threads from host tables that are filled when the
        loader is made, gathered into pinned memory and copied beside the training, or gathered and
        copied. ``'auto'``: the first that works and fits; see `device_source`.
    window : int, optional
        Batches whose rows are gathered at once, so that reads can be sorted and merged. None: as
        many as suit the source, 8 MB of rows where files are mapped, 32 MB where chunks must be
        decoded or fetched, and 64 batches at most.
    prefetch : int, optional
        Batches that a background thread has ready ahead of the caller; whole windows are prepared,
        so it may be more. 0: no thread, prepared in line when the caller asks. None: a thread once
        two windows in a row took more than 0.1 ms a batch; with a device, from the start.
    reuse_buffers : bool
        Gather into the memory of earlier windows, where the source can: a batch, and any view of
        its columns, is then valid only until the next one is asked for.
    on_uneven : {'error', 'pad'}
        What to do where the plan cannot be dealt to `world_size` ranks; see `ranks`.
    collate : {'jagged', 'padded'}, Padded, or mapping of str → these; optional
        Tensors of ragged columns; for all of them, or for those named. See `collate`.
    transform : callable, optional
        Called with each `Batch` on the host, where batches are prepared; may return anything. A
        `Batch` that it returns goes to the device. Key its randomness by ``batch.seeds``.
    transform_threads : int
        Threads that it runs on, results in order; 0: the thread that prepares.
    transform_workers : int
        Processes that it runs in instead, for a transform that holds the GIL; see `workers`.
    progress : bool
        A live line on stderr, where that is a terminal.
    follow : bool
        Wait for the members that a series gains, until `epochs` are complete.
    poll_seconds : float
        How often to look for them.
    storage_options : mapping, optional
        Options of the filesystem of plan and dataset, for URIs.
    pack : bool
        Whether a dataset that cannot be mapped (Parquet, compressed or remote files) is packed when
        it is first used, by one process of a machine; see `dataplane.pack_cache`. Else, and where
        the disk has no room, its chunks are decoded again and again.
    packed_dir : path, optional
        The folder of tables that were packed so. Default: ``BATCHLOOM_CACHE``, else
        ``batchloom/packed`` in the user's cache folder.
    packed_bytes : int
        What that folder may hold; least recently used tables make room.
    cache_bytes : int
        Decoded row groups that are kept in memory where nothing is packed.
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
        dataset: RowsLike,
        *,
        columns: Sequence[str] | None = None,
        epochs: Epochs = None,
        rank: int | None = None,
        world_size: int | None = None,
        device: str | torch.device = "cpu",
        transfer: Transfer = "auto",
        window: int | None = None,
        prefetch: int | None = None,
        reuse_buffers: bool = False,
        on_uneven: OnUneven = "error",
        collate: Collate = None,
        transform: Transform | None = None,
        transform_threads: int = 0,
        transform_workers: int = 0,
        follow: bool = False,
        poll_seconds: float = 1.0,
        storage_options: Mapping[str, Any] | None = None,
        pack: bool = True,
        packed_dir: str | os.PathLike[str] | None = None,
        packed_bytes: int = CACHE_BYTES,
        cache_bytes: int = 256 << 20,
        verify: Literal["header", "all"] = "header",
        progress: bool = False,
    ) -> None:
        if window is not None:
            require_int("window", window, 1)
        if prefetch is not None:
            require_int("prefetch", prefetch, 0)
        require_int("cache_bytes", cache_bytes, 0)
        require_int("packed_bytes", packed_bytes, 0)
        check_transfer(transfer)
        _check_columns(columns)
        _check_transform(transform, transform_threads, transform_workers)
        device = resolve_device(device)  # here: the current GPU belongs to this thread
        self._walk = PlanWalk(
            plan,
            epochs=epochs,
            ranks=resolve_ranks(rank, world_size, on_uneven),
            follow=follow,
            poll_seconds=poll_seconds,
            verify=verify,
            storage_options=storage_options,
        )
        if transform is not None and transfer == "unified":
            raise ParameterError(
                "A transform works on the host, and transfer='unified' brings rows to the GPU "
                "before it: use transfer='auto', or do the work in the training step."
            )
        options = SourceOptions(
            columns,
            device if transform is None else torch.device("cpu"),
            transfer if transform is None else "cpu",
            cache_bytes,
            storage_options,
            pack,
            packed_dir,
            packed_bytes,
        )
        self._sources = Sources(dataset, options)
        for manifest in self._walk.members():
            self._sources.bind(manifest)
        self._meter = Meter()
        self._pipeline = Pipeline(
            self._walk,
            self._sources,
            self._meter,
            device,
            transfer,
            window,
            resolve_collate(collate, self._sources.schema),
            transform,
            transform_threads,
            None if not transform_workers else Workers(transform, transform_workers),
        )
        self._prefetch = _DEPTH_ON_DEVICE if prefetch is None and device.type != "cpu" else prefetch
        self._reuse = reuse_buffers
        self._line = _live_line() if progress else None

    @property
    def columns(self) -> list[str]:
        return list(self._sources.schema.names)

    def __iter__(self) -> Iterator[Any]:
        self._end_live()
        cursor, stopped = self._walk.begin(), threading.Event()
        buffers = Buffers() if self._reuse else None
        runs = self._pipeline.runs(cursor, buffers, stopped)
        if self._prefetch is None:
            source: Any = Ahead(runs, stopped)
        else:
            source = prefetched(runs, self._prefetch, stopped) if self._prefetch else runs
        iteration = Iteration(source, cursor, self._meter, buffers, self._watch)
        self._begin_live(iteration)
        return iteration

    def _watch(self, over: bool) -> None:
        """Tell whoever wants to know, each time that the caller went on to another window."""
        self._meter.warn(self._sources.stats)
        if isinstance(self._walk.plan, Series):
            self._walk.plan.tell(self._note, last=over)
        if self._line is not None:
            self._line.show(self._walk.state(), self.stats())
            if over:
                self._line.end()

    def _note(self) -> dict[str, Any]:
        """Return what is told of this rank."""
        state, stats = self._walk.state(), self.stats()
        return {
            "rank": self.rank,
            "world": self.world_size,
            "epoch": state.epoch,
            "step": state.next_step,
            "samples": stats.samples,
            "seconds": stats.seconds,
            "waited_seconds": stats.waited_seconds,
        }

    def stats(self) -> LoaderStats:
        """Return what was delivered so far, how fast, and how long the caller waited for it."""
        return self._meter.stats(self._sources.stats())

    def close(self) -> None:
        """End the live iteration, threads and worker processes, and close the dataset's files."""
        self._end_live()
        self._sources.close()
        if self._pipeline.workers is not None:
            self._pipeline.workers.close()
        if self._line is not None:
            self._line.end()


def _live_line() -> LiveLine:
    from .progress import LiveLine  # rich takes a tenth of a second to import

    return LiveLine()


def _check_transform(transform: Transform | None, threads: int, workers: int) -> None:
    require_int("transform_threads", threads, 0)
    require_int("transform_workers", workers, 0)
    if transform is None and (threads or workers):
        raise ParameterError(
            "There is no transform for transform_threads or transform_workers to run: pass "
            "transform=…, or leave them out."
        )
    if threads and workers:
        raise ParameterError(
            "A transform runs on transform_threads or in transform_workers, and both were given: "
            "leave one out."
        )


def _check_columns(columns: Any) -> None:
    if columns is None:
        return
    if isinstance(columns, str) or len(set(columns)) < len(columns):
        raise ParameterError(
            "The 'columns' parameter must be a list of different column names. "
            f"Got {columns!r} instead."
        )
