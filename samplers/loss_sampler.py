"""Selecting by loss while training: what the samplers of this kind share.

    >>> sampler = SeTaSampler(len(data), batch_size=128, epochs=40, seed=0)
    >>> loader = DataLoader(IndexedDataset(data), batch_sampler=sampler)
    >>> for epoch in range(sampler.epoch, 40):
    ...     sampler.set_epoch(epoch)                    # plans it, from the losses so far
    ...     for rows, (x, y) in loader:
    ...         losses = criterion(model(x), y)         # one a row: reduction="none"
    ...         loss = (sampler.weights(rows) * losses).mean()
    ...         sampler.update(rows, losses)

An epoch is planned when it is set, and its rows, weights and order are those of an offline plan
from the same losses and seed. Rows are drawn by keys: no global random state is read or changed.

**Ranks.** `batch_size` is rows a step, over all ranks; rank r of W takes the rows ⌊rn/W⌋ to
⌊(r+1)n/W⌋ of a step of n. Each rank updates the rows that it has trained on; they are exchanged
once, when the next epoch is set, and when a state is taken: both are collectives.

**Cost.** A step draws a slice of an array; `weights` and `update` are one to three tensor
operations each, on the tensors' device. What was updated is checked and written into the losses
once, when the next epoch is set or a state is taken. Methods with weights hold them by row, too:
4 bytes a row.

**State.** The losses so far and what was selected in this epoch: 4 bytes and 2 bits a row. It is
the same on every rank, and any number of ranks may load it, at any step.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import Dataset, Sampler

from ..dataplane.bitmap import Bitmap
from ..dataplane.checks import require_int
from ..dataplane.errors import RowIdError, SelectionError, WorldSizeError
from ..dataplane.parameters import resolved
from ..dataplane.random import Permutation
from .exchange import gather_pairs, joined, on_several_ranks
from .ranks import OnUneven, resolve_ranks, share_steps
from .state import check_settings

__all__ = ["Chosen", "IndexedDataset", "LossSampler"]

VERSION = 1
_CHUNK_ROWS = 1 << 20

I64 = npt.NDArray[np.int64]
F32 = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]


class IndexedDataset(Dataset[tuple[int, Any]]):
    """A map-style dataset that gives (index, item), so that a batch knows its rows."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __getitem__(self, index: int) -> tuple[int, Any]:
        return index, self.dataset[index]

    def __getitems__(self, indices: Sequence[int]) -> list[tuple[int, Any]]:
        """Return a batch's items, by the dataset's own ``__getitems__`` where it has one."""
        many = getattr(self.dataset, "__getitems__", None)
        items = [self.dataset[i] for i in indices] if many is None else many(indices)
        return list(zip(indices, items, strict=True))

    def __len__(self) -> int:
        return len(self.dataset)


@dataclass(frozen=True)
class Chosen:
    """What was selected for an epoch.

    Attributes
    ----------
    epoch : int
    rows : Bitmap
    weights : float32, shape (rows,), or None
        By rank among the rows; None: all 1.
    report : mapping
        What the method tells of it.
    """

    epoch: int
    rows: Bitmap
    weights: F32 | None = None
    report: Mapping[str, Any] = field(default_factory=dict)


class LossSampler(Sampler[list[int]]):
    """Yields the indices of one batch of this rank; for `DataLoader`'s `batch_sampler`.

    Parameters
    ----------
    rows : int
        Rows of the dataset.
    method : parameters
        What selects them.
    batch_size : int
        Rows a step, over all ranks.
    seed : int
        Of the order.
    rank, world_size : int, optional
        Those of torch.distributed where it runs, else 0 of 1. Where it does not run, each rank must
        be given the losses of all of them.
    drop_last : bool
        Leave out the rows of a last, smaller step.
    on_uneven : {'pad', 'error'}
        What a rank gets of a step of fewer rows than ranks: a copy of one row, whose weight is 0;
        or `WorldSizeError`.
    """

    def __init__(
        self,
        rows: int,
        method: Any,
        *,
        batch_size: int,
        seed: int,
        rank: int | None = None,
        world_size: int | None = None,
        drop_last: bool = False,
        on_uneven: OnUneven = "pad",
    ) -> None:
        super().__init__()
        require_int("rows", rows, 1)
        require_int("batch_size", batch_size, 1)
        self.rows, self.method, self.batch_size = rows, method, batch_size
        self._seed, self._drop_last = seed, drop_last
        self._ranks = resolve_ranks(rank, world_size, on_uneven)
        self._losses = np.zeros(rows, np.float32)
        self._scored = np.zeros(rows, bool)
        self._updates: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._updates_before = 0  # of this epoch, exchanged already
        self._chosen: Chosen | None = None
        self._order: Permutation | None = None
        self._order_of = (0, 0)
        self._weight_of_row: torch.Tensor | None = None
        self._next = 0
        self._loaded = False
        self._pads: set[int] = set()
        self._run: object = None

    # --- what a method fills in -------------------------------------------------------------------

    @abstractmethod
    def _choose(self, epoch: int, losses: F32, scored: Mask) -> Chosen:
        """Select an epoch's rows."""

    def _steps(self, chosen: Chosen) -> int:
        rows, size = len(chosen.rows), self.batch_size
        return rows // size if self._drop_last else -(-rows // size)

    def _rows_of(self, chosen: Chosen, first: int) -> Iterator[tuple[I64, I64]]:
        """Yield (rows, rows of each step) of many steps at a time, from one step on."""
        n, size, steps = len(chosen.rows), self.batch_size, self._steps(chosen)
        order = self._permutation(n, chosen.epoch)
        at_once = max(1, _CHUNK_ROWS // size)
        for start in range(first, steps, at_once):
            stop = min(start + at_once, steps)
            rows = chosen.rows.select(order[start * size : min(stop * size, n)]).view(np.int64)
            sizes = np.full(stop - start, size)
            sizes[-1] = len(rows) - size * (len(sizes) - 1)
            yield rows, sizes

    def _permutation(self, n: int, epoch: int) -> Permutation:
        """Return the order of an epoch; the last one is kept, since a small one is a sort."""
        if self._order is None or self._order_of != (n, epoch):
            self._order = Permutation(n, seed=self._seed, epoch=epoch)
            self._order_of = n, epoch
        return self._order

    # --- the training loop ------------------------------------------------------------------------

    @property
    def epoch(self) -> int:
        """The epoch that is set, or the first one."""
        return 0 if self._chosen is None else self._chosen.epoch

    @property
    def report(self) -> Mapping[str, Any]:
        """What the method tells of the epoch: rows a group, window, share saved, …"""
        return self._planned().report

    def set_epoch(self, epoch: int) -> None:
        """Plan an epoch from the losses so far; nothing where it is set already.

        A collective where torch.distributed runs: every rank sets every epoch.

        Raises
        ------
        SelectionError
            Where a loss is NaN or infinite.
        ParameterError
            Where the epoch is not one of the training's.
        """
        require_int("epoch", epoch, 0)
        if self._chosen is not None and self._chosen.epoch == epoch:
            return
        self._exchange()
        self._chosen = self._choose(epoch, self._losses, self._scored)
        self._next, self._loaded, self._run = 0, False, None
        self._pads, self._updates_before, self._weight_of_row = set(), 0, None

    def _planned(self) -> Chosen:
        if self._chosen is None:
            self.set_epoch(0)
        assert self._chosen is not None  # for the type checker: it was just set
        return self._chosen

    def steps_in_epoch(self) -> int:
        """Return the steps of the epoch that is set, the same on every rank."""
        return self._steps(self._planned())

    def __len__(self) -> int:
        return self.steps_in_epoch()

    def __iter__(self) -> Iterator[list[int]]:
        chosen = self._planned()
        # A DataLoader may begin twice; a state that was loaded holds until a batch is drawn.
        first = self._next if self._loaded else 0
        run = self._run = object()
        return self._indices(chosen, first, run)

    def _indices(self, chosen: Chosen, first: int, run: object) -> Iterator[list[int]]:
        step = first
        for rows, sizes in self._rows_of(chosen, first):
            fit = self._steps_that_fit(sizes)
            for start, stop, pad in self._shares(sizes)[:fit]:
                mine: list[int] = rows[start:stop].tolist()  # now: new ints are in the cache
                if pad:
                    self._pads.update(mine)
                step += 1
                if run is self._run:
                    self._next, self._loaded = step, False
                yield mine
            if fit < len(sizes):
                raise WorldSizeError(
                    f"Step {step} of epoch {chosen.epoch} has {sizes[fit]} rows, which "
                    f"{self._ranks.world_size} ranks cannot share; use drop_last=True or "
                    "on_uneven='pad'."
                )

    def _steps_that_fit(self, sizes: I64) -> int:
        """Return how many steps come before the first one that the ranks cannot share."""
        small = np.flatnonzero(sizes < self._ranks.world_size)
        return int(small[0]) if len(small) and self._ranks.on_uneven == "error" else len(sizes)

    def _shares(self, sizes: I64) -> list[tuple[int, int, bool]]:
        """Return where this rank's rows of each step start, stop, and whether they are copies."""
        world = self._ranks
        each = np.arange(len(sizes) + 1)
        share = share_steps("sliceable", sizes, each, world.rank, world.world_size)
        before = np.cumsum(sizes) - sizes
        starts, stops = (before + share.start).tolist(), (before + share.stop).tolist()
        return list(zip(starts, stops, share.pad.tolist(), strict=True))

    def weights(self, rows: Any) -> torch.Tensor:
        """Return the weights of rows of this epoch, as this rank trains on them.

        Parameters
        ----------
        rows : int tensor or array, shape (n,)

        Returns
        -------
        float32 tensor, shape (n,), on the device of `rows`
            NaN where the epoch has weights and does not train on the row.
        """
        chosen = self._planned()
        given = rows if torch.is_tensor(rows) else torch.as_tensor(rows)
        if chosen.weights is None and not self._pads:
            return torch.ones_like(given, dtype=torch.float32)
        ids = given.to("cpu", torch.int64)
        if chosen.weights is None:
            found = torch.ones(len(ids))
        else:
            found = self._by_row(chosen.rows, chosen.weights)[ids]
        if self._pads:
            found[torch.from_numpy(np.isin(ids.numpy(), list(self._pads)))] = 0
        return found.to(given.device)

    def _by_row(self, rows: Bitmap, weights: F32) -> torch.Tensor:
        """Return the weights of an epoch by row."""
        if self._weight_of_row is None:
            by_row = np.full(self.rows, np.nan, np.float32)
            by_row[rows.ids().view(np.int64)] = weights
            self._weight_of_row = torch.from_numpy(by_row)
        return self._weight_of_row

    def update(self, rows: Any, losses: Any) -> None:
        """Take the losses of rows that this rank has trained on; the last one of a row counts.

        Parameters
        ----------
        rows : int tensor or array, shape (n,)
        losses : float tensor or array, shape (n,)
            Not reduced. They may require a gradient, and be changed afterwards.

        Raises
        ------
        SelectionError
            Where shapes differ: a loss that was reduced has none.
        """
        given = rows if torch.is_tensor(rows) else torch.as_tensor(rows)
        told = losses if torch.is_tensor(losses) else torch.as_tensor(losses)
        if told.shape != given.shape or given.ndim != 1:
            raise SelectionError(
                f"'losses': expected shape {tuple(given.shape)}, got {tuple(told.shape)}; give one "
                "loss a row: use reduction='none'."
            )
        # Copies, and nothing else: the rest is done once for all steps, in `_exchange`.
        self._updates.append((given.clone(), told.detach().clone()))
        if len(self._updates) == 1:  # what is wrong from the start shows at the start
            self._check_rows(joined([given], torch.int64))

    def _exchange(self) -> None:
        """Write what all ranks were told since the last time into the losses."""
        rows = joined([r for r, _ in self._updates], torch.int64)
        losses = joined([v for _, v in self._updates], torch.float32)
        if self._pads and on_several_ranks():  # the rank that the row is of has its loss, too
            real = ~np.isin(rows, list(self._pads))
            rows, losses = rows[real], losses[real]
        rows, losses = gather_pairs(rows, losses)
        self._check_rows(rows)
        self._updates_before += len(self._updates)
        self._updates = []
        self._losses[rows] = losses
        self._scored[rows] = True

    def _check_rows(self, rows: I64) -> None:
        bad = (rows < 0) | (rows >= self.rows)
        if bad.any():
            row = int(rows[bad][0])
            raise RowIdError(
                f"A loss of row {row} was given{self._update_of(row)}; the sampler was made for "
                f"{self.rows:,} rows, 0 to {self.rows - 1}."
            )

    def _update_of(self, row: int) -> str:
        """Return which update a row was in, as an error says it."""
        for number, (rows, _) in enumerate(self._updates, start=self._updates_before):
            if (rows == row).any():
                epoch = "" if self._chosen is None else f" of epoch {self._chosen.epoch}"
                return f" in update {number}{epoch}"
        return " on another rank"

    # --- state ------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return where the sampler stands; exact without workers, ahead of the loop with them.

        A collective where torch.distributed runs: every rank takes it, at the same step.
        """
        return self._state(self._next)

    def state_after(self, step: int) -> dict[str, Any]:
        """Return the state of a training that has finished a step of the epoch; see `state_dict`.

        For a `DataLoader` with workers, which draws batches ahead.
        """
        require_int("step", step, 0)
        return self._state(step + 1)

    def _identity(self) -> dict[str, Any]:
        return {
            "version": VERSION,
            "method": type(self.method).__name__,
            "settings": resolved(self.method),
            "seed": self._seed,
            "rows": self.rows,
            "batch_size": self.batch_size,
            "drop_last": self._drop_last,
        }

    def _state(self, next_step: int) -> dict[str, Any]:
        chosen = self._planned()
        self._exchange()
        weights = None if chosen.weights is None else torch.from_numpy(chosen.weights.copy())
        return {
            **self._identity(),
            "epoch": chosen.epoch,
            "next_step": next_step,
            "losses": torch.from_numpy(self._losses.copy()),
            "scored": torch.from_numpy(np.packbits(self._scored)),
            "selected": torch.from_numpy(chosen.rows.words.view(np.int64).copy()),
            "weights": weights,
            "report": dict(chosen.report),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on at a state; any rank of any number of ranks may load it.

        Raises
        ------
        ResumeMismatchError
            Where it is no state, or one of another method, seed, dataset size or batch size.
        """
        check_settings(state, self._identity(), "sampler")
        words = state["selected"].numpy().view(np.uint64).copy()
        weights = None if state["weights"] is None else state["weights"].numpy().copy()
        self._losses = state["losses"].numpy().copy()
        self._scored = np.unpackbits(state["scored"].numpy(), count=self.rows).view(bool)
        self._chosen = Chosen(int(state["epoch"]), Bitmap(words), weights, state["report"])
        self._next, self._loaded = int(state["next_step"]), True
        self._updates, self._updates_before = [], self._next
        self._pads, self._weight_of_row, self._run = set(), None, None
