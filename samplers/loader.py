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
import weakref
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from typing import Any, Literal, TypeAlias

import numpy as np
import torch

from ..dataplane.dataset import Dataset, DatasetLike
from ..dataplane.errors import BatchloomError, ParameterError
from ..dataplane.manifest import Manifest
from ..dataplane.plan import MicroBatch, Ragged
from ..dataplane.rows import RowReader
from ..dataplane.snapshot import row_ids_to_int64
from ..gpu_access.cpu import CpuGather, host_tensor
from ..gpu_access.transfer import Transfer, check_transfer, resolve_device
from .batch import Batch
from .checks import require_int
from .prefetch import Prefetched
from .ranks import OnUneven, Share, resolve_ranks
from .seeds import occurrence_seeds, row_seeds
from .state import LoaderState
from .walk import Epochs, Piece, PlanLike, PlanWalk, Start

__all__ = ["ManifestLoader"]

Prepared: TypeAlias = tuple[Any, LoaderState]
"""What `transform` made of a batch, and the state once it is delivered."""


class ManifestLoader:
    """Iterates over a plan's batches.

    Parameters
    ----------
    plan : path, URI, Manifest or Series
    dataset : path, URI, list, mapping or Dataset
        The dataset that was planned; more files than planned are fine.
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
    prefetch : int
        Batches that a background thread prepares ahead; 0: none, prepared in line.
    on_uneven : {'error', 'pad'}
        What to do where the plan cannot be dealt to `world_size` ranks; see `ranks`.
    transform : callable, optional
        Called with each `Batch` on the host, in the background thread; may return anything. A
        `Batch` that it returns goes to the device. Key its randomness by ``batch.seeds``.
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
        dataset: DatasetLike,
        *,
        columns: Sequence[str] | None = None,
        epochs: Epochs = None,
        rank: int | None = None,
        world_size: int | None = None,
        device: str | torch.device = "cpu",
        transfer: Transfer = "auto",
        prefetch: int = 2,
        on_uneven: OnUneven = "error",
        transform: Callable[[Batch], Any] | None = None,
        follow: bool = False,
        poll_seconds: float = 1.0,
        storage_options: Mapping[str, Any] | None = None,
        cache_bytes: int = 256 << 20,
        verify: Literal["header", "all"] = "header",
    ) -> None:
        require_int("prefetch", prefetch, 0)
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
        self._tables = _Tables(dataset, columns, storage_options, cache_bytes)
        for manifest in self._walk.members():
            self._tables.bind(manifest)
        self._prefetch = prefetch
        self._transform = transform
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
        return self._tables.columns

    def __len__(self) -> int:
        """Return the batches of a whole iteration, the same on every rank."""
        return self._walk.batches()

    def __iter__(self) -> Iterator[Any]:
        self._end_live()
        start = self._walk.begin()
        iteration = _Iteration(self._walk, start, self._source(start))
        self._live = weakref.ref(iteration)
        return iteration

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
        self._tables.close()

    def _end_live(self) -> None:
        live = None if self._live is None else self._live()
        if live is not None:
            live.replace()
        self._live = None

    def _source(self, start: Start) -> Generator[Prepared, None, None] | Prefetched[Prepared]:
        stopped = threading.Event()
        prepared = self._prepared(start, stopped)
        return Prefetched(prepared, self._prefetch, stopped) if self._prefetch else prepared

    def _prepared(self, start: Start, stopped: threading.Event) -> Generator[Prepared, None, None]:
        for piece in self._walk.pieces(start, stopped):
            yield self._finished(self._batch(piece)), piece.state

    def _batch(self, piece: Piece) -> Batch:
        micro_batch, share = piece.micro_batch, piece.share
        taken = slice(share.start, share.stop)
        ids = micro_batch.rows[taken]
        reader = self._tables.reader(piece.manifest)
        columns = CpuGather(reader.schema).gather(ids, reader.visit(ids))
        return Batch(
            columns=columns,
            rows=torch.from_numpy(row_ids_to_int64(ids).copy()),
            weights=_weights(micro_batch, share),
            seeds=torch.from_numpy(_seeds(piece)),
            epoch=piece.record.epoch,
            step=micro_batch.step,
            micro=micro_batch.micro,
            step_rows=piece.step_rows,
            step_weight=piece.step_weight,
            pad=torch.ones(len(ids), dtype=torch.bool) if share.pad else None,
            side={c.name: _side(c.name, c.kind, piece) for c in piece.manifest.side_columns},
        )

    def _finished(self, batch: Batch) -> Any:
        result: Any = batch
        if self._transform is not None:
            try:
                result = self._transform(batch)
            except Exception as error:
                error.add_note(
                    f"Raised by the loader's transform of epoch {batch.epoch}, step {batch.step}, "
                    f"micro {batch.micro}."
                )
                raise
        if isinstance(result, Batch) and self._device.type != "cpu":
            return result.to(self._device, self._transfer)
        return result


class _Iteration(Iterator[Any]):
    """One way through the plan; holds the loader's state up to date."""

    def __init__(
        self,
        walk: PlanWalk,
        start: Start,
        source: Generator[Prepared, None, None] | Prefetched[Prepared],
    ) -> None:
        self._walk = walk
        self._start = start
        self._source = source
        self._ended = self._replaced = False

    def __next__(self) -> Any:
        if self._replaced:
            raise BatchloomError(
                "This iteration was ended by a newer iter() or load_state_dict() of its loader. "
                "Make a second loader to read a plan twice at once."
            )
        try:
            result, state = next(self._source)
        except BaseException:
            self._ended = True
            raise
        self._walk.deliver(self._start, state)
        return result

    def close(self) -> None:
        """Stop preparing batches; the iteration is over."""
        self._ended = True
        self._source.close()

    def replace(self) -> None:
        """Close, and let a caller who goes on all the same know."""
        self._replaced = not self._ended
        self.close()


class _Tables:
    """The dataset as each manifest planned it; one is open for reading at a time."""

    def __init__(
        self,
        data: DatasetLike,
        columns: Sequence[str] | None,
        storage_options: Mapping[str, Any] | None,
        cache_bytes: int,
    ) -> None:
        self._data = data
        self._columns = columns
        self._storage_options = storage_options
        self._cache_bytes = cache_bytes
        self._datasets: dict[Any, Dataset] = {}
        self._keys: dict[str, Any] = {}
        self._open: tuple[Any, RowReader] | None = None
        self.columns: list[str] = []

    def bind(self, manifest: Manifest) -> None:
        """Check that the rows which the manifest planned are there, unchanged; once."""
        if manifest.manifest_id in self._keys:
            return
        # Members of a series mostly share a snapshot; then one check serves them all.
        key = (manifest.snapshot.fingerprint, tuple(manifest.planned_fragments()))
        if key not in self._datasets:
            dataset = manifest.open_dataset(self._data, storage_options=self._storage_options)
            RowReader(dataset, self._columns)  # refuses columns that are not there
            self._datasets[key] = dataset
        self._keys[manifest.manifest_id] = key
        if not self.columns:
            self.columns = self._reader(key).columns

    def reader(self, manifest: Manifest) -> RowReader:
        self.bind(manifest)
        return self._reader(self._keys[manifest.manifest_id])

    def _reader(self, key: Any) -> RowReader:
        if self._open is None or self._open[0] != key:
            self.close()
            reader = RowReader(self._datasets[key], self._columns, cache_bytes=self._cache_bytes)
            self._open = (key, reader)
        return self._open[1]

    def close(self) -> None:
        if self._open is not None:
            self._open[1].close()
            self._open = None


def _check_columns(columns: Any) -> None:
    if columns is None:
        return
    if isinstance(columns, str) or len(set(columns)) < len(columns):
        raise ParameterError(
            "The 'columns' parameter must be a list of different column names. "
            f"Got {columns!r} instead."
        )


def _weights(micro_batch: MicroBatch, share: Share) -> torch.Tensor:
    rows = share.stop - share.start
    if share.pad:
        return torch.zeros(rows)
    if micro_batch.weights is None:
        return torch.ones(rows)
    return torch.from_numpy(micro_batch.weights[share.start : share.stop].copy())


def _seeds(piece: Piece) -> np.ndarray[Any, np.dtype[np.int64]]:
    micro_batch, share, epoch = piece.micro_batch, piece.share, piece.record.epoch
    rows = micro_batch.rows[share.start : share.stop]
    if piece.record.coverage != "with_replacement":
        return row_seeds(piece.manifest.seed, epoch, rows)
    return occurrence_seeds(
        piece.manifest.seed,
        epoch,
        rows,
        step=micro_batch.step,
        micro=micro_batch.micro,
        first_position=share.start,
    )


def _side(name: str, kind: str, piece: Piece) -> Any:
    """Return one side column of the rows taken, as memory of our own."""
    value, share = piece.micro_batch.side[name], piece.share
    if kind == "batch":
        return value.item()
    if isinstance(value, Ragged):
        part = value.slice(share.start, share.stop)
        return Ragged(part.offsets.copy(), part.values.copy())
    rows = piece.micro_batch.rows[share.start : share.stop]
    return host_tensor(value[share.start : share.stop], rows, name)
