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

**State.** The losses so far and what was selected in this epoch: 4 bytes and 2 bits a row. It is
the same on every rank, and any number of ranks may load it, at any step.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping
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
from .exchange import gather_pairs, on_several_ranks
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
        self._chosen: Chosen | None = None
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

    def _rows_of(self, chosen: Chosen, first: int) -> Iterator[I64]:
        """Yield the rows of each step, from one on."""
        n, size, steps = len(chosen.rows), self.batch_size, self._steps(chosen)
        order = Permutation(n, seed=self._seed, epoch=chosen.epoch)
        at_once = max(1, _CHUNK_ROWS // size)
        for start in range(first, steps, at_once):
            stop = min(start + at_once, steps)
            rows = chosen.rows.select(order[start * size : min(stop * size, n)]).view(np.int64)
            for k in range(stop - start):
                yield rows[k * size : (k + 1) * size]

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
        self._pads = set()

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
        world = self._ranks
        for step, rows in enumerate(self._rows_of(chosen, first), start=first):
            mine: list[int] = (rows if world.world_size == 1 else self._share(step, rows)).tolist()
            if run is self._run:
                self._next, self._loaded = step + 1, False
            yield mine

    def _share(self, step: int, rows: I64) -> I64:
        """Return this rank's rows of a step."""
        world = self._ranks
        one, size = np.array([0, 1]), np.array([len(rows)])
        share = share_steps("sliceable", size, one, world.rank, world.world_size)
        mine = rows[int(share.start[0]) : int(share.stop[0])]
        if len(rows) < world.world_size and world.on_uneven == "error":
            raise WorldSizeError(
                f"Step {step} of epoch {self._planned().epoch} has {len(rows)} rows, which "
                f"{world.world_size} ranks cannot share; use drop_last=True or on_uneven='pad'."
            )
        if share.pad[0]:
            self._pads.update(mine.tolist())
        return mine

    def weights(self, rows: Any) -> torch.Tensor:
        """Return the weights of rows of this epoch, as this rank trains on them.

        Parameters
        ----------
        rows : int tensor or array, shape (n,)

        Returns
        -------
        float32 tensor, shape (n,), on the device of `rows`
        """
        chosen, given = self._planned(), torch.as_tensor(rows)
        if chosen.weights is None and not self._pads:
            return torch.ones(len(given), dtype=torch.float32, device=given.device)
        ids = given.cpu().numpy().astype(np.uint64)
        found = np.ones(len(ids), np.float32)
        if chosen.weights is not None:
            found = chosen.weights[chosen.rows.ranks(ids)]
        if self._pads:
            found = np.where(np.isin(ids, list(self._pads)), np.float32(0), found)
        return torch.from_numpy(found).to(given.device)

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
        taken = torch.as_tensor(losses).detach().to(torch.float32, copy=True)
        ids = torch.as_tensor(rows).detach().to(torch.int64, copy=True)
        if taken.shape != ids.shape or ids.ndim != 1:
            raise SelectionError(
                f"'losses': expected shape {tuple(ids.shape)}, got {tuple(taken.shape)}; give one "
                "loss a row: use reduction='none'."
            )
        self._updates.append((ids, taken))

    def _exchange(self) -> None:
        """Write what all ranks were told since the last time into the losses."""
        rows, losses = np.zeros(0, np.int64), np.zeros(0, np.float32)
        if self._updates:
            rows = torch.cat([r.cpu() for r, _ in self._updates]).numpy()
            losses = torch.cat([v.cpu() for _, v in self._updates]).numpy()
        if self._pads and on_several_ranks():  # the rank that the row is of has its loss, too
            real = ~np.isin(rows, list(self._pads))
            rows, losses = rows[real], losses[real]
        rows, losses = gather_pairs(rows, losses)
        bad = (rows < 0) | (rows >= self.rows)
        if bad.any():
            raise RowIdError(
                f"A loss of row {int(rows[bad][0])} was given; the sampler was made for "
                f"{self.rows:,} rows, 0 to {self.rows - 1}."
            )
        self._updates = []
        self._losses[rows] = losses
        self._scored[rows] = True

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
        self._updates, self._pads, self._run = [], set(), None
